"""Keys are boundaries: whose a request is, how much it may, and how a changed file is taken."""

import hmac
import logging
from pathlib import Path

import pytest

from legokv.errors import ApiRefused, KeyMissing, NotAllowed, RateLimited
from legokv.serving.api_keys import add_key, revoke_key
from legokv.serving.gateway.accounts import Everybody
from legokv.serving.gateway.keys import Accounts, Bucket, credentials_in


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    return Clock()


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_bucket_gives_a_minutes_worth_at_once_and_then_as_it_fills(clock: Clock) -> None:
    bucket = Bucket(6, clock)
    assert [bucket.take(1) for _ in range(7)] == [0, 0, 0, 0, 0, 0, 10]
    clock.now += 9
    assert bucket.take(1) == pytest.approx(1)
    clock.now += 1
    assert (bucket.take(1), bucket.take(1)) == (0, 10)
    clock.now += 3600
    assert [bucket.take(1) for _ in range(7)].count(0) == 6


def test_more_than_a_bucket_holds_is_never_taken(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    assert bucket.take(61) == 1
    assert bucket.take(60) == 0
    clock.now += 3600
    assert bucket.take(180) == 120


def test_a_key_is_its_account_and_no_other_text_is(file: Path) -> None:
    a, _ = add_key(file, "a", {})
    b, _ = add_key(file, "b", {"namespace": "shared"})
    accounts = Accounts(file)
    assert (accounts.of([a]).key.name, accounts.of([b]).namespace()) == ("a", "shared")
    assert accounts.of([a, a]).key.name == "a"
    for wrong in ("", a[:-1], a + "x", a.upper(), b[3:], "\ud800", "x" * 10**6):
        with pytest.raises(KeyMissing, match="not known here, or was revoked"):
            accounts.of([wrong])
    with pytest.raises(KeyMissing, match="asks for an API key"):
        accounts.of([])
    with pytest.raises(KeyMissing, match="2 different API keys"):
        accounts.of([a, b])


def test_every_key_is_compared_in_constant_time_and_to_the_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = add_key(file, "a", {})
    for name in ("b", "c"):
        add_key(file, name, {})
    accounts, compared = Accounts(file), []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda x, y: compared.append(x) or compare(x, y))
    accounts.of([a])
    assert len(compared) == 3


def test_a_changed_file_counts_from_the_next_request_and_buckets_go_on(
    file: Path, clock: Clock
) -> None:
    a, _ = add_key(file, "a", {"requests_per_minute": 1})
    accounts = Accounts(file, clock)
    accounts.of([a]).count_request()
    b, _ = add_key(file, "b", {})
    assert accounts.of([b]).key.name == "b"
    with pytest.raises(RateLimited):
        accounts.of([a]).count_request()
    revoke_key(file, "a")
    with pytest.raises(KeyMissing):
        accounts.of([a])
    assert accounts.of([b]).key.name == "b"


@pytest.mark.parametrize("how", ["damaged", "gone", "folder"])
def test_a_damaged_file_leaves_the_keys_and_says_so_once(
    how: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = add_key(file, "a", {})
    accounts = Accounts(file)
    accounts.of([a])
    if how == "damaged":
        file.write_text('{"format": 1,')
    else:
        file.unlink()
    if how == "folder":
        file.mkdir()
    with caplog.at_level(logging.WARNING):
        assert [accounts.of([a]).key.name for _ in range(3)] == ["a"] * 3
    (line,) = caplog.messages
    assert line.endswith("; the keys stay as they were")
    assert a not in line


def test_the_namespace_is_the_key_s_alone(file: Path) -> None:
    a, _ = add_key(file, "a", {})
    account = Accounts(file).of([a])
    assert (account.namespace(), account.namespace("a")) == ("a", "a")
    for other in ("default", "b", "", "A"):
        with pytest.raises(NotAllowed, match="reaches the namespace 'a' alone"):
            account.namespace(other)
    assert (Everybody().namespace(), Everybody().namespace("b")) == ("default", "b")


def test_tokens_are_reserved_ahead_and_settled_once_with_what_was_used(
    file: Path, clock: Clock
) -> None:
    key, _ = add_key(file, "a", {"tokens_per_minute": 600})
    account = Accounts(file, clock).of([key])
    first = account.reserve_tokens(400, 100)
    with pytest.raises(RateLimited, match=r"has 600 tokens a minute.* in 40 s") as refused:
        account.reserve_tokens(0, 500)
    assert refused.value.retry_after_seconds == 40
    first.settle(100)
    first.settle(9000)
    account.reserve_tokens(0, 500)
    with pytest.raises(RateLimited, match="in 1 s"):
        account.reserve_tokens(0, 10)
    clock.now += 1
    account.reserve_tokens(0, 10)


def test_no_request_takes_more_than_a_key_s_minute_has(file: Path, clock: Clock) -> None:
    key, _ = add_key(file, "a", {"tokens_per_minute": 600})
    account = Accounts(file, clock).of([key])
    assert account.limits_tokens
    with pytest.raises(ApiRefused, match="may take 601 tokens, 501 of its prompt and 100 of"):
        account.reserve_tokens(501, 100)
    account.reserve_tokens(500, 100)


def test_without_limits_nothing_is_counted(file: Path) -> None:
    key, _ = add_key(file, "a", {})
    account = Accounts(file).of([key])
    for _ in range(1000):
        account.count_request()
        account.reserve_tokens(0, 10**9).settle(10**9)
    assert not account.limits_tokens


def test_metrics_are_for_keys_that_were_made_for_them(file: Path) -> None:
    a, _ = add_key(file, "a", {})
    b, _ = add_key(file, "b", {"metrics": True})
    accounts = Accounts(file)
    accounts.of([b]).check_metrics()
    Everybody().check_metrics()
    with pytest.raises(NotAllowed, match="legokv keys add --metrics"):
        accounts.of([a]).check_metrics()


def test_keys_come_as_openais_and_anthropics_clients_send_them() -> None:
    assert credentials_in([(b"authorization", b"Bearer k"), (b"accept", b"*/*")]) == {"k"}
    assert credentials_in([(b"authorization", b"bearer  k "), (b"x-api-key", b"k")]) == {"k"}
    assert credentials_in([(b"x-api-key", b"k"), (b"authorization", b"Basic k")]) == {"k", ""}
    assert credentials_in([(b"cookie", b"k")]) == set()


def test_while_the_file_was_never_read_nobody_is_let_in(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = add_key(file, "a", {})
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    accounts = Accounts(file)
    for _ in range(2):
        with pytest.raises(KeyMissing):
            accounts.of([a])
    assert len(caplog.messages) == 1
    file.write_bytes(whole)
    assert accounts.of([a]).key.name == "a"
