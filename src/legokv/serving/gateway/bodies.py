"""A request's body within bounds, as JSON or as a form with one file."""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from legokv.errors import AnswerBroken, ApiRefused, InvalidRequest, RequestTooLarge, kind_of
from legokv.serving.body_bounds import HeldBodies, check_json
from legokv.serving.fields import Reader, parse_json

MAX_FORM_FIELDS = 32
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_T = TypeVar("_T")


@contextmanager
def held(bodies: HeldBodies, receive: Receive) -> Iterator[Receive]:
    """Counts one request's body as it comes; Busy when the bodies together are too many."""
    own = 0

    async def receive_counted() -> Message:
        nonlocal own
        message = await receive()
        num_bytes = len(message.get("body", b""))
        own += num_bytes
        bodies.num_bytes += num_bytes
        bodies.check(own)
        return message

    try:
        yield receive_counted
    finally:
        bodies.num_bytes -= own


async def json_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object that the request has for a body, without members that are null."""
    body = await _bytes(request, max_bytes)
    check_json(body)
    value = parse_json(body, "the body", "an object of the body", parse_float=_finite)
    if _HALF_PAIR.search(body):
        _check_pairs(value)
    if not isinstance(value, dict):
        raise ApiRefused(f"the body is a JSON object, not {kind_of(value)}")
    return {name: member for name, member in value.items() if member is not None}


async def _bytes(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(int(declared), max_bytes)
    parts, num_bytes = [], 0
    try:
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise too_large(num_bytes, max_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise AnswerBroken("the client is gone") from None
    return b"".join(parts)


async def form_body(request: Request, max_bytes: int) -> tuple[str, str, bytes, dict[str, str]]:
    """Name, type and bytes of the form's one file, and its other fields."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(int(declared), max_bytes)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiRefused("a file comes as multipart/form-data with a part called 'file'")
    try:
        form = await request.form(max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=2**16)
    except (MultiPartException, HTTPException) as error:
        sentence = getattr(error, "message", None) or getattr(error, "detail", "")
        raise ApiRefused(f"the form cannot be read: {sentence}") from None
    except ClientDisconnect:
        raise AnswerBroken("the client is gone") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiRefused("the form has no part 'file' with a filename", param="file")
        if (file.size or 0) > max_bytes:
            raise too_large(file.size or 0, max_bytes)
        others = {name: value for name, value in form.items() if isinstance(value, str)}
        return file.filename or "", file.content_type or "", await file.read(), others
    finally:
        await form.close()


def too_large(num_bytes: int, max_bytes: int) -> RequestTooLarge:
    """The error for a body or file of so many bytes or more."""
    return RequestTooLarge(f"the request has {num_bytes} bytes or more, at most {max_bytes} fit")


def _check_pairs(value: Any) -> None:
    """ApiRefused if a text has half a surrogate pair: it is no text that could go out again."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ApiRefused("a text of the body is not UTF-8: it has half a surrogate pair") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiRefused(f"the number {digits[:40]} in the body is too large")
    return number


def read_fields(
    body: Mapping[str, Any],
    readers: Mapping[str, Reader],
    without_effect: Collection[str],
    only: Mapping[str, tuple[Any, ...]],
) -> dict[str, Any]:
    """The fields that have a reader and are given.

    `only` names fields of which the values listed ask for nothing; ApiRefused for any other value
    of these, and for a field in neither.
    """
    values = {}
    for name, value in body.items():
        if name in only:
            if value not in only[name]:
                raise ApiRefused(f"{name!r} is not offered by this server", param=name)
        elif name in readers:
            values[name] = _read(readers[name], body, name)
        elif name not in without_effect:
            raise ApiRefused(f"unknown field {name[:80]!r}", param=name[:80], kind="unknown_field")
    return values


def _read(reader: Reader, body: Mapping[str, Any], name: str) -> Any:
    try:
        return reader(body, name)
    except ApiRefused:
        raise
    except InvalidRequest as error:
        raise ApiRefused(str(error), param=name, kind="invalid_value") from None


async def while_client_stays(request: Request, work: Awaitable[_T]) -> _T:
    """What the work gives; it is cancelled when the client goes, which is an AnswerBroken."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise AnswerBroken("the client is gone")
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
