"""Whose a request is: a credential becomes an account with a namespace and limits. No HTTP here.

Limits are token buckets in this process's memory. They start full, so a minute's worth may come at
once; a server's start, and another server, have their own.
"""

import hmac
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from legokv.errors import ApiRefused, InvalidRequest, KeyMissing, NotAllowed, RateLimited
from legokv.serving.api_keys import ApiKey, hash_of, read_keys

MAX_KEY_LEN = 512
_NO_HASH = "0" * 64
_HOW = "send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"

Clock = Callable[[], float]
_Stamp = tuple[int, int, int, int]

log = logging.getLogger(__name__)


class Bucket:
    """What may be taken a minute. Empty, it fills in one."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled = clock()

    def take(self, amount: float) -> float:
        """0 if the amount was taken, else the seconds until it could be, and nothing is taken."""
        now = self._clock()
        risen = self._level + (now - self._filled) * self._per_minute / 60
        self._level, self._filled = min(float(self._per_minute), risen), now
        missing = amount - self._level
        if missing > 0:
            return missing * 60 / self._per_minute
        self._level -= amount
        return 0.0

    def give_back(self, amount: float) -> None:
        """What was taken and not used."""
        self._level += amount


@dataclass(frozen=True)
class KeyAccount:
    """Who asks by a key. A bucket that is None has no limit."""

    key: ApiKey
    requests: Bucket | None = None
    tokens: Bucket | None = None

    @property
    def stored_bytes(self) -> int:
        """Most bytes of the namespace's files; 0: what the server allows any."""
        return self.key.stored_bytes

    def namespace(self, name: str | None = None) -> str:
        """The one that is reached; NotAllowed if a request's field names another than the key's."""
        if name is not None and name != self.key.namespace:
            raise NotAllowed(
                f"this API key reaches the namespace {self.key.namespace!r} alone, and not "
                f"{str(name)[:80]!r}: leave 'namespace' out",
                "namespace",
            )
        return self.key.namespace

    def check_metrics(self) -> None:
        """NotAllowed unless the key may read the figures of the whole server."""
        if not self.key.metrics:
            raise NotAllowed(
                "metrics count all namespaces together, and this API key does not read them: "
                "`legokv keys add --metrics` makes one that does"
            )

    def count_request(self) -> None:
        """One request more; RateLimited, and it is not counted, if that is past the limit."""
        seconds = 0.0 if self.requests is None else self.requests.take(1)
        if seconds:
            raise _limited(f"{self.key.requests_per_minute} requests", seconds)

    @property
    def limits_tokens(self) -> bool:
        """Whether the key has a limit of tokens a minute."""
        return self.tokens is not None

    def reserve_tokens(self, prompt: int, answers: int) -> "TokensReserved":
        """Tokens of a prompt and the most of its answers; RateLimited if fewer are left of the
        minute, and ApiRefused if no minute has so many.

        What the request used at last is told by `settle`.
        """
        most, limit = prompt + answers, self.key.tokens_per_minute
        if self.tokens is not None and most > limit:
            raise ApiRefused(
                f"the request may take {most} tokens, {prompt} of its prompt and {answers} of "
                f"answers, and this API key has {limit} a minute: leave documents or messages "
                "out, or ask for a smaller 'max_tokens' or 'n'",
                param="max_tokens",
                kind="tokens_past_limit",
            )
        seconds = 0.0 if self.tokens is None else self.tokens.take(most)
        if seconds:
            raise _limited(f"{self.key.tokens_per_minute} tokens", seconds)
        return TokensReserved(self.tokens, most, prompt)


@dataclass
class TokensReserved:
    """Tokens taken ahead of an answer."""

    bucket: Bucket | None
    reserved: int
    prompt: int

    def settle(self, used: int) -> None:
        """Count what prompt and answer had in place of what was reserved. Once: later, nothing."""
        if self.bucket is not None:
            self.bucket.give_back(self.reserved - used)
            self.bucket = None


def _limited(limit: str, seconds: float) -> RateLimited:
    wait = max(1, math.ceil(seconds))
    return RateLimited(
        f"this API key has {limit} a minute, and they are used: ask again in {wait} s", wait
    )


@dataclass
class Accounts:
    """The accounts of a keys' file, which is read again when it has changed.

    One that is damaged changes nothing: the keys stay as they were, none at the start, and one
    line says so.
    """

    file: Path
    clock: Clock = time.monotonic
    _stamp: _Stamp | None = field(init=False, default=(0, 0, 0, 0))
    _by_hash: dict[str, KeyAccount] = field(init=False, default_factory=dict)

    def of(self, credentials: Iterable[str]) -> KeyAccount:
        """The account of a request's keys; KeyMissing for none, for two, and for an unknown one."""
        self._look()
        keys = set(credentials)
        if not keys:
            raise KeyMissing(f"this server asks for an API key: {_HOW}")
        if len(keys) > 1:
            raise KeyMissing(f"the request has {len(keys)} different API keys: send one")
        (key,) = keys
        digest = hash_of(key) if len(key) <= MAX_KEY_LEN else _NO_HASH
        account = None
        # To the end of the list, whichever is the one, each compared in constant time.
        for known_hash, known_account in self._by_hash.items():
            if hmac.compare_digest(known_hash, digest):
                account = known_account
        if account is None:
            raise KeyMissing("this API key is not known here, or was revoked")
        return account

    def _look(self) -> None:
        stamp = _stamp_of(self.file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = read_keys(self.file)
        except InvalidRequest as error:
            log.warning("%s; the keys stay as they were", error)
            return
        self._take(keys)
        log.info("%d API keys are known now", len(keys))

    def _take(self, keys: Iterable[ApiKey]) -> None:
        """Who was there and has the same limits goes on with the same buckets."""
        self._by_hash = {key.sha256: self._account(key) for key in keys}

    def _account(self, key: ApiKey) -> KeyAccount:
        before = self._by_hash.get(key.sha256)
        requests, tokens = (before.requests, before.tokens) if before else (None, None)
        if before is None or before.key.requests_per_minute != key.requests_per_minute:
            requests = self._bucket(key.requests_per_minute)
        if before is None or before.key.tokens_per_minute != key.tokens_per_minute:
            tokens = self._bucket(key.tokens_per_minute)
        return KeyAccount(key, requests, tokens)

    def _bucket(self, per_minute: int) -> Bucket | None:
        return Bucket(per_minute, self.clock) if per_minute else None


def _stamp_of(file: Path) -> _Stamp | None:
    """What changes with a file; None if there is none."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def credentials_in(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """The keys that a request's headers name, as OpenAI's and Anthropic's clients send them."""
    keys = set()
    for name, value in headers:
        text = value.decode("latin-1").strip()
        scheme, _, bearer = text.partition(" ")
        if name == b"x-api-key":
            keys.add(text)
        elif name == b"authorization":
            keys.add(bearer.strip() if scheme.lower() == "bearer" else "")
    return keys
