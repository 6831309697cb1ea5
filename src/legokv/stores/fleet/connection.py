"""One process's connection to the shared Redis: scripts run, errors said, outages waited out.

What cannot be reached is left alone for some seconds: a server that hangs costs one caller the
time of one reply, not every caller every time.
"""

import importlib.resources
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from legokv.errors import CacheUnavailable, InvalidRequest, StillUnavailable
from legokv.stores.fleet.address import check_redis_url, shown_redis_url

_log = logging.getLogger(__name__)
REPLY_SECONDS = 2.0
RETRY_SECONDS = 5.0
CONFIRM_SECONDS = 10.0
"""So often a Redis that nobody asks is asked whether it is there."""
_NO_ROOM = (
    "; its memory is full: delete documents, or `legokv cache models` says what other models keep "
    "and `legokv cache forget MODEL` removes it"
)
LAYOUT_VERSION = 1
"""Part of every key: programs of different layouts do not see each other's."""


class Script:
    """The operations of one Lua file, each atomic."""

    def __init__(self, name: str) -> None:
        files = importlib.resources.files("legokv.stores.fleet") / "scripts"
        parts = ("prelude.lua", f"{name}.lua")
        self.text = "\n".join((files / part).read_text() for part in parts)


class Connection:
    """Asks one Redis about one model's keys. Safe to use from several threads.

    clock: Unix seconds in place of the Redis server's own clock, which all machines share.
    """

    def __init__(self, url: str, model: str, *, clock: Callable[[], float] | None = None) -> None:
        self.shown_url = shown_redis_url(check_redis_url(url))
        self.prefix = f"legokv:{LAYOUT_VERSION}:{{{model}}}:"
        self._clock = clock
        self._url = url
        self._client = _client(url)
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._num_asking = 0
        self._closed = False
        self._retry_at = 0.0
        self._answered_at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long ago Redis answered last, or this was made."""
        return time.monotonic() - self._answered_at

    def confirm(self) -> None:
        """Ask whether Redis answers, if it has not for CONFIRM_SECONDS; CacheUnavailable if not."""
        if self.silent_seconds >= CONFIRM_SECONDS:
            with self.asking() as client:
                client.ping()

    def close(self) -> None:
        """Refuse who asks from now on, and wait for those who do, 2 x REPLY_SECONDS at most."""
        with self._answered:
            self._closed = True
            seconds = 2 * REPLY_SECONDS
            if not self._answered.wait_for(lambda: not self._num_asking, timeout=seconds):
                _log.warning(
                    "the connection to %s is closed under %d who asked for more than %g s",
                    *(self.shown_url, self._num_asking, seconds),
                )
        self._client.close()

    def now(self) -> float:
        """Unix seconds by the clock that deadlines are set by."""
        if self._clock is not None:
            return self._clock()
        with self.asking() as client:
            seconds, microseconds = client.time()
            return float(seconds) + float(microseconds) / 1e6

    def run(
        self, script: Script, operation: str, arguments: Mapping[str, object], *blobs: bytes
    ) -> list[Any]:
        """The reply of one operation: a list whose first item says how it went."""
        values = self.script_arguments(operation, arguments, *blobs)
        with self.asking() as client:
            call = client.register_script(script.text)
            reply: list[Any] = call(keys=[self.prefix], args=values)
            return reply

    def script_arguments(
        self, operation: str, arguments: Mapping[str, object], *blobs: bytes
    ) -> list[str | bytes]:
        """What a script finds in ARGV."""
        now = "" if self._clock is None else repr(self._clock())
        return [now, operation, json.dumps(arguments), *blobs]

    def memory_settings(self) -> tuple[int, str]:
        """`maxmemory` in bytes, 0 for any, and `maxmemory-policy`."""
        with self.asking() as client:
            facts: Any = client.info("memory")
        return int(facts.get("maxmemory", 0)), str(facts.get("maxmemory_policy", "noeviction"))

    @contextmanager
    def asking(self) -> Iterator["redis.Redis"]:
        """The client for a block; what Redis cannot do now becomes CacheUnavailable."""
        self._begin_to_ask()
        try:
            with self._errors_said():
                yield self._client
            self._retry_at = 0.0
            self._answered_at = time.monotonic()
        finally:
            with self._answered:
                self._num_asking -= 1
                self._answered.notify_all()

    @contextmanager
    def listening(self, channel: str, seconds: float) -> Iterator[Iterator[str | None]]:
        """Messages on a channel of the model's from now on, None where none came for `seconds`.

        What Redis cannot do now becomes CacheUnavailable; messages may be lost from then on.
        """
        # A client of its own, that nobody closes who closes this connection.
        with (
            self._errors_said(leave_alone=False),
            _client(self._url) as client,
            client.pubsub() as heard,
        ):
            heard.subscribe(f"{self.prefix}{channel}")
            first = heard.get_message(timeout=REPLY_SECONDS)
            if first is None or first["type"] != "subscribe":
                raise CacheUnavailable(f"{self.shown_url} did not answer: no channel was opened")
            yield _messages(heard, seconds)

    @contextmanager
    def _errors_said(self, *, leave_alone: bool = True) -> Iterator[None]:
        """Turn what Redis says into CacheUnavailable, and leave it alone if it does not answer."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if leave_alone:
                self._retry_at = time.monotonic() + RETRY_SECONDS
            raise CacheUnavailable(
                f"{self.shown_url} does not answer: {error}; it is asked again in "
                f"{RETRY_SECONDS:g} s"
            ) from error
        except redis.RedisError as error:
            room = _NO_ROOM if "maxmemory" in str(error) else ""
            raise CacheUnavailable(f"{self.shown_url} refused: {error}{room}") from error

    def _begin_to_ask(self) -> None:
        """StillUnavailable while Redis is left alone, CacheUnavailable once this is closed."""
        with self._lock:
            if self._closed:
                raise CacheUnavailable(f"the connection to {self.shown_url} is closed")
            now = time.monotonic()
            if now < self._retry_at:
                raise StillUnavailable(
                    f"{self.shown_url} did not answer and is asked again in "
                    f"{self._retry_at - now:.1f} s"
                )
            if self._retry_at:
                # This caller finds out whether it is back; the others go on without it meanwhile.
                self._retry_at = now + RETRY_SECONDS
            self._num_asking += 1


def _messages(heard: Any, seconds: float) -> Iterator[str | None]:
    while True:
        message = heard.get_message(timeout=seconds)
        data = message["data"] if message and message["type"] == "message" else None
        yield data.decode() if isinstance(data, bytes) else None


def _client(url: str) -> "redis.Redis":
    try:
        return redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=REPLY_SECONDS,
            socket_connect_timeout=REPLY_SECONDS,
            # Not every operation may be done twice, and a second try would wait once more.
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise InvalidRequest(f"redis_url {shown_redis_url(url)}: {error}") from None
