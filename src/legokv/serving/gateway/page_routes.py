"""The page at `/`: two files of this package, which need no other server and no build step."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("page")
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def page_routes() -> list[Route]:
    """The page and its module."""
    page = (_FOLDER / "index.html").read_text(encoding="utf-8")
    module = (_FOLDER / "page.js").read_text(encoding="utf-8")
    headers = _headers(page)
    return [
        _file("/", page, "text/html", headers),
        _file("/page/page.js", module, "text/javascript", headers),
    ]


def _file(path: str, content: str, media_type: str, headers: dict[str, str]) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, answer, methods=["GET"])


def _headers(page: str) -> dict[str, str]:
    """What lets a browser run this module and use this style alone, and ask this server alone."""
    return {
        "content-security-policy": "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                f"style-src {_hash_of_style(page)}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _hash_of_style(page: str) -> str:
    styles = _STYLE.findall(page)
    assert len(styles) == 1, "the page has one style"
    digest = hashlib.sha256(styles[0].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
