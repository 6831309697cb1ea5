"""Page bookkeeping on the host: which pages of the pool are free. No tensors here."""

from collections.abc import Iterable

from legokv.errors import PoolFull


class PagePool:
    """Hands out page numbers 0 to num_pages - 1; a page has one holder at a time."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._taken)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages `num_tokens` tokens fill."""
        return -(-num_tokens // self.page_size)

    def take(self, num_pages: int) -> list[int]:
        """That many free pages; PoolFull, and nothing taken, if there are too few."""
        if num_pages > len(self._free):
            raise PoolFull(
                f"{num_pages} pages of {self.page_size} tokens are needed, "
                f"{len(self._free)} of {self.num_pages} are free"
            )
        pages = [self._free.pop() for _ in range(num_pages)]
        self._taken.update(pages)
        return pages

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages taken before; a page that is not out is a caller's bug."""
        for page in pages:
            assert page in self._taken, f"page {page} is given back but was not taken"
            self._taken.remove(page)
            self._free.append(page)
