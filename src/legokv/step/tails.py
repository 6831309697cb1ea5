"""Where answers' tokens go: behind one prompt that all read, each in pages of its own."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from legokv.link.link import Link
from legokv.model.dtypes import Int32
from legokv.step.sequence import TokenSequence, page_slots


@dataclass(frozen=True)
class Tail:
    """The end of one answer's sequence: its token number n, from 0, goes to `slots[n]`, int32."""

    sequence: TokenSequence
    slots: Int32


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
    # So many slots of the first page are the prompt's.
    filled = link.prompt_tokens - link.tail_position - num_full * page_size

    def tail(sequence: TokenSequence, pages: Sequence[int]) -> Tail:
        return Tail(sequence, page_slots(pages, len(pages) * page_size, page_size)[filled:])

    first = private_pages[link.tail_private + num_full : link.num_private_pages]
    tails, copies = [tail(prompt, first)], []
    for number in range(num_answers - 1):
        start = link.num_private_pages + number * own
        pages = private_pages[start : start + own]
        forked = copy(prompt)
        forked.table = prompt.table.copy()
        forked.table[len(forked.table) - own :, 0] = pages
        tails.append(tail(forked, pages))
        if own and filled:
            copies.append(pages[0])
    return Tails(tuple(tails), [first[0] for _ in copies], copies)


def _num_full_pages(link: Link, page_size: int) -> int:
    return (link.prompt_tokens - link.tail_position) // page_size
