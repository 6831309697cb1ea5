"""HTTP requests however their bytes are cut into reads, without a socket."""

import asyncio
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from legokv.serving.front import bounds
from legokv.serving.front.bounds import Bounds
from legokv.serving.front.http_protocol import BoundedProtocol, bounded_protocol
from legokv.serving.front.state import State

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUPGRADE:\th2c\r\nHTTP2-Settings: AAMAAA\r\n"
# A body with lines like those of a head.
BODY = b"a\r\nUpgrade: h2c\r\n\r\nb\r\n\r\n"


class Wire(asyncio.Transport):
    """What a connection writes, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def heard(*reads: bytes) -> tuple[list[tuple[str, bytes, bool]], bytes]:
    """Path and body of each request that came of these reads, whether it still has the offer, and
    what was written back."""
    requests: list[tuple[str, bytes, bool]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        names = [name for name, _ in scope["headers"]]
        requests.append((scope["path"], body, b"upgrade" in names))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> bytes:
        config, server = Config(app, lifespan="off", access_log=False), ServerState()
        kind = bounded_protocol(Bounds(100_000, connections=8), State())
        connection: BoundedProtocol = kind(config, server, {})
        wire = Wire()
        connection.connection_made(wire)
        for read in reads:
            connection.data_received(read)
        for _ in range(100):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        for task in server.tasks:
            task.cancel()
        return wire.written

    return requests, asyncio.run(main())


def request(path: str, *lines: bytes, is_chunked: bool = False) -> bytes:
    """One request with the body that offers another protocol."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n" % path.encode() + b"".join(lines)
    if is_chunked:
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    return head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("offer", [b"", OFFER])
def test_requests_are_the_same_wherever_their_bytes_are_cut(offer: bytes, is_chunked: bool) -> None:
    one, other = (request(path, offer, is_chunked=is_chunked) for path in ("/one", "/other"))
    expected = [("/one", BODY, False), ("/other", BODY, False)]
    for cut in range(len(one + other) + 1):
        both = one + other
        requests, written = heard(both[:cut], both[cut:])
        assert requests == expected, cut
        assert written.count(b" 204 ") == 2, cut
    each_byte = [bytes([byte]) for byte in one + other]
    assert heard(*each_byte)[0] == expected


def test_many_requests_in_one_read_may_each_offer_another_protocol() -> None:
    requests, _ = heard(b"".join(request(f"/{number}", OFFER) for number in range(20)))
    assert requests == [(f"/{number}", BODY, False) for number in range(20)]


def test_a_head_s_bounds_hold_where_it_offers_another_protocol() -> None:
    long = b"X: " + b"a" * bounds.MAX_HEAD_BYTES + b"\r\n"
    for lines in ((OFFER, long), (long, OFFER), (OFFER, b"X: a\r\n" * (bounds.MAX_HEADERS + 1))):
        whole = request("/", *lines)
        for reads in ((whole,), (whole[:100], whole[100:])):
            requests, written = heard(*reads)
            assert requests == []
            assert written.startswith(b"HTTP/1.1 431 ")


def test_what_two_parsers_could_read_in_two_ways_is_refused_beside_an_offer() -> None:
    for lines in (b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"):
        requests, written = heard(request("/", OFFER, lines))
        assert requests == []
        assert written.startswith(b"HTTP/1.1 400 ")


def test_a_tunnel_is_no_request_with_a_body() -> None:
    requests, _ = heard(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n", BODY)
    assert [body for _, body, _ in requests] in ([], [b""])
