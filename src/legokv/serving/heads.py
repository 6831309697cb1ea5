"""Heads of prompts: the server's own, and others that documents are compiled behind too."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from legokv.documents.document import TokenSpan
from legokv.errors import LegokvError
from legokv.serving.messages import AskEngine, Drop, PromptSegment, Warm, ask_by_keys
from legokv.serving.settings import Settings
from legokv.text.formats import PromptFormats
from legokv.text.prompt import head_ids
from legokv.text.tokenizer import Tokenizer

MAX_HEADS = 4096
"""Heads whose requests are counted, the one not seen for longest forgotten first."""

_log = logging.getLogger(__name__)


def own_head(settings: Settings, tokenizer: Tokenizer, formats: PromptFormats) -> TokenSpan:
    """What stands before the documents of a request that says nothing else, today."""
    return head_ids(tokenizer, formats.of({}), settings.own_system_text)


@dataclass
class _Copy:
    """A document behind another head than its own; not `is_ready` while it is compiled."""

    head: str
    keys: tuple[str, ...]
    num_bytes: int
    is_ready: bool = False


class OtherHeads:
    """Has documents compiled behind a head that requests bring again and again, in the background.

    Such copies are kept in memory alone, within a budget; the one not used for longest leaves, and
    its head is counted anew. Safe to use from several threads.
    """

    def __init__(
        self,
        ask_engine: AskEngine,
        run_in_background: Callable[[Callable[[], object]], object],
        *,
        num_requests: int,
        max_bytes: int,
        token_bytes: int,
    ) -> None:
        """num_requests: so many with a head, and it is compiled behind. 0: it never is."""
        self._ask_engine = ask_engine
        self._run_in_background = run_in_background
        self._num_requests = num_requests
        self._max_bytes = max_bytes
        self._token_bytes = token_bytes
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, int] = OrderedDict()
        # By the key of the document's last chunk behind that head; least recently used first.
        self._copies: OrderedDict[str, _Copy] = OrderedDict()

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled behind any head."""
        return self._num_requests > 0

    def note(self, head: str) -> None:
        """A request came with the head of that key, over documents compiled behind others."""
        with self._lock:
            self._seen[head] = self._seen.pop(head, 0) + 1
            while len(self._seen) > MAX_HEADS:
                self._seen.popitem(last=False)

    def has(self, namespace: str, head: PromptSegment, chunks: Sequence[PromptSegment]) -> bool:
        """Whether these chunks of one document are compiled behind the head, as they say.

        If they are not, and the head came often enough, they will be.
        """
        assert head.key is not None, "a head that documents stand behind has its key"
        keys = tuple(str(piece.key) for piece in chunks)
        with self._lock:
            copy = self._copies.get(keys[-1])
            if copy is not None:
                self._copies.move_to_end(keys[-1])
                return copy.is_ready
            if not self.compiles or self._seen.get(head.key, 0) < self._num_requests:
                return False
            num_bytes = self._token_bytes * sum(len(piece.token_ids) for piece in chunks)
            if not self._make_room(num_bytes):
                return False
            copy = _Copy(head.key, keys, num_bytes)
            self._copies[keys[-1]] = copy
        command = Warm(namespace, (head, *chunks), "pool")
        self._run_in_background(lambda: self._compile(command, copy))
        return False

    def forget(self, keys: Sequence[str]) -> None:
        """Copies with these last keys have left the memory: their heads are counted anew."""
        with self._lock:
            for key in keys:
                if key in self._copies:
                    self._remove(key)

    def _compile(self, command: Warm, copy: _Copy) -> None:
        with self._forgotten_on_error(copy):
            ask_by_keys(self._ask_engine, command, set())
            copy.is_ready = True

    @contextmanager
    def _forgotten_on_error(self, copy: _Copy) -> Iterator[None]:
        try:
            yield
        except LegokvError as error:
            _log.warning("a document was not compiled behind another head: %s", error)
        finally:
            if not copy.is_ready:
                self.forget(copy.keys[-1:])

    def _make_room(self, num_bytes: int) -> bool:
        """Let the copies go that leave for so many bytes; False, and none goes, if too few can."""
        used = sum(copy.num_bytes for copy in self._copies.values())
        leaving: list[str] = []
        for key, copy in self._copies.items():
            if used + num_bytes <= self._max_bytes:
                break
            if copy.is_ready:
                leaving.append(key)
                used -= copy.num_bytes
        if used + num_bytes > self._max_bytes:
            return False
        gone = [key for last in leaving for key in self._remove(last).keys]
        if gone:
            self._run_in_background(lambda: self._ask_engine(Drop(tuple(gone))))
        return True

    def _remove(self, key: str) -> _Copy:
        copy = self._copies.pop(key)
        self._seen.pop(copy.head, None)
        return copy
