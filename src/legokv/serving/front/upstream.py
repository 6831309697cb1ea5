"""Triton's HTTP from inside: one pool of connections to a local socket."""

from contextlib import AbstractAsyncContextManager

import aiohttp
from yarl import URL

_SKIPPED = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class Upstream:
    """Requests to the server behind one socket. Made and used in one event loop."""

    def __init__(self, socket: str) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0, keepalive_timeout=600),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=_SKIPPED,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The response to a request as it comes; raises aiohttp.ClientError if nobody answers."""
        url = URL.build(scheme="http", host="triton", path=path, encoded=True)
        return self._session.request(
            method, url, headers=headers, data=body or None, allow_redirects=False
        )

    async def close(self) -> None:
        await self._session.close()
