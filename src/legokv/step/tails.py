"""Where answers' tokens go: behind one prompt that all read, each in pages of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from legokv.link.link import Link
from legokv.step.sequence import TokenSequence


@dataclass(frozen=True)
class Tail:
    """The end of one answer's sequence; slot 0 of its first page is position `first_position`."""

    sequence: TokenSequence
    pages: Sequence[int]
    first_position: int
    page_size: int

    def follow_with(self, token_id: int, position: int) -> None:
        """One more token to compute; all before it are computed."""
        offset = position - self.first_position
        page = self.pages[offset // self.page_size]
        slot = page * self.page_size + offset % self.page_size
        self.sequence.follow_with(token_id, position, slot)


@dataclass(frozen=True)
class Tails:
    """The tails of all answers to one prompt, and pages to copy before they go on."""

    tails: tuple[Tail, ...]
    copy_sources: Sequence[int]
    copy_targets: Sequence[int]


def num_own_pages(link: Link, page_size: int) -> int:
    """Pages that answers to one prompt cannot share: all from its last, partly filled one on."""
    last = link.pages[-1]
    if last.first_position + last.filled == link.prompt_tokens:
        return 0
    return link.num_private_pages - link.tail_private - _num_full_pages(link, page_size)


def tails_behind(
    link: Link,
    prompt: TokenSequence,
    private_pages: Sequence[int],
    page_size: int,
    num_answers: int,
) -> Tails:
    """A tail for each answer behind `prompt`, which is all computed.

    `private_pages` are the link's and `num_own_pages` more for each other answer. The first answer
    goes on in the prompt's own pages, the others in copies of its last one if that is partly
    filled.
    """
    own, num_full = num_own_pages(link, page_size), _num_full_pages(link, page_size)
    position = link.tail_position + num_full * page_size
    first = private_pages[link.tail_private + num_full : link.num_private_pages]
    tails = [Tail(prompt, first, position, page_size)]
    for number in range(num_answers - 1):
        start = link.num_private_pages + number * own
        pages = private_pages[start : start + own]
        table = prompt.table.copy()
        table[len(table) - own :, 0] = pages
        tails.append(Tail(replace(prompt, table=table), pages, position, page_size))
    to_copy = tails[1:] if own and position < link.prompt_tokens else []
    sources = [first[0] for _ in to_copy]
    return Tails(tuple(tails), sources, [tail.pages[0] for tail in to_copy])


def _num_full_pages(link: Link, page_size: int) -> int:
    return (link.prompt_tokens - link.tail_position) // page_size
