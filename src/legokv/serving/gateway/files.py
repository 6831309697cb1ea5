"""`/v1/files`: documents of the registry as files, in OpenAI's shape and in Anthropic's."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from legokv.documents.document import MAX_NAME_LEN, MAX_TTL_SECONDS, normalise_text
from legokv.errors import ApiRefused, NotFound
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.bodies import form_body
from legokv.serving.gateway.extract import MEDIA_TYPES, text_of
from legokv.serving.gateway.library import INLINE, document_id_of, file_id_of
from legokv.serving.gateway.refusals import is_anthropic
from legokv.serving.gateway.uploads import Upload
from legokv.serving.gateway.world import World

PURPOSE = "user_data"
MAX_PAGE_LEN = 10_000
_PAGE_LEN = 1000
_STATUS = {"registered": "uploaded", "compiling": "uploaded", "ready": "processed"}
_UPLOAD_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")

Document = dict[str, Any]


class Files:
    """The endpoints. `account` is who asks; documents of other namespaces are not there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._compiling: set[asyncio.Task[None]] = set()

    async def upload(self, request: Request, account: Account) -> Response:
        """Register what the form's file says; it is compiled afterwards."""
        world = self._world
        name, media_type, data, others = await form_body(request, world.settings.request_bytes)
        ttl_seconds = _ttl_seconds(others, needs_purpose=not is_anthropic(request))
        text, kind = await text_of(name, media_type, data)
        reply = await world.models.documents(
            "create",
            namespace=account.namespace(),
            namespace_bytes=account.stored_bytes,
            text=text,
            name=_short_name(name),
            ttl_seconds=ttl_seconds,
            wait=False,
        )
        document = reply["document"]
        upload = Upload(len(data), MEDIA_TYPES[kind])
        if data != normalise_text(text).encode():
            await asyncio.to_thread(
                world.uploads.keep, account.namespace(), document["id"], upload, data
            )
        return JSONResponse(await self._shown(request, document))

    async def list_files(self, request: Request, account: Account) -> Response:
        """A page of the account's files."""
        with_tiers = request.query_params.get("tiers") == "true"
        documents = await self._all(account, with_tiers=with_tiers)
        if is_anthropic(request):
            return JSONResponse(await self._anthropic_page(request, documents))
        limit, after = (
            _limit(request, MAX_PAGE_LEN, MAX_PAGE_LEN),
            request.query_params.get("after"),
        )
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiRefused(f"'order' is asc or desc, not {order[:80]!r}", param="order")
        if order == "desc":
            documents.reverse()
        if request.query_params.get("purpose", PURPOSE) != PURPOSE:
            documents = []
        page, has_more = _page(documents, after, limit)
        data = [await self._shown(request, document) for document in page]
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": has_more,
            }
        )

    async def get(self, request: Request, account: Account) -> Response:
        """One file; one that nobody compiles is compiled from now on."""
        document = await self._found(request, account)
        if document["state"] == "registered":
            self._compile(account.namespace(), document["id"])
        return JSONResponse(await self._shown(request, document))

    async def content(self, request: Request, account: Account) -> Response:
        """The file as it was uploaded, or the registered text where no more is kept."""
        document = await self._found(request, account)
        uploads, namespace = self._world.uploads, account.namespace()
        upload = await asyncio.to_thread(uploads.facts, namespace, document["id"])
        data = await asyncio.to_thread(uploads.data, namespace, document["id"])
        if upload is None or data is None:
            data = await self._text(account, document["id"])
        media_type = "text/plain" if upload is None else upload.media_type
        # Never shown as a page of this server's own.
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(data, media_type=media_type, headers=headers)

    async def delete(self, request: Request, account: Account) -> Response:
        """Forget the file, its document and what was compiled of it."""
        document = await self._found(request, account)
        await self._delete(account.namespace(), document["id"])
        file_id = file_id_of(document["id"])
        if is_anthropic(request):
            return JSONResponse({"id": file_id, "type": "file_deleted"})
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def _found(self, request: Request, account: Account) -> Document:
        asked = document_id_of(request.path_params["file_id"])
        reply = await self._world.models.documents("get", namespace=account.namespace(), id=asked)
        document: Document = reply["document"]
        try:
            self._world.library.check_not_over(document)
        except NotFound:
            await self._delete(account.namespace(), asked)
            raise
        return document

    async def _all(self, account: Account, *, with_tiers: bool) -> list[Document]:
        """All files in order of registration, but those whose time is over."""
        after, documents = 0, []
        while after is not None:
            reply = await self._world.models.documents(
                "list",
                namespace=account.namespace(),
                after=after,
                limit=_PAGE_LEN,
                tiers=with_tiers,
            )
            documents += reply["documents"]
            after = reply["next_after"]
        return [document for document in documents if self._is_file(document)]

    def _is_file(self, document: Document) -> bool:
        try:
            self._world.library.check_not_over(document)
        except NotFound:
            return False
        return not (document["name"] or "").startswith(INLINE)

    async def _text(self, account: Account, document_id: str) -> bytes:
        reply = await self._world.models.documents(
            "get", namespace=account.namespace(), id=document_id, text=True
        )
        return str(reply["text"]).encode()

    async def _delete(self, namespace: str, document_id: str) -> None:
        await self._world.models.documents("delete", namespace=namespace, id=document_id)
        self._world.library.forget(namespace, document_id)
        await asyncio.to_thread(self._world.uploads.forget, namespace, document_id)

    def _compile(self, namespace: str, document_id: str) -> None:
        if any(task.get_name() == document_id for task in self._compiling):
            return

        async def compile_now() -> None:
            await self._world.models.documents(
                "get", namespace=namespace, id=document_id, wait=True
            )

        task = asyncio.create_task(compile_now(), name=document_id)
        self._compiling.add(task)
        task.add_done_callback(self._compiled)

    def _compiled(self, task: "asyncio.Task[None]") -> None:
        self._compiling.discard(task)
        if not task.cancelled():
            task.exception()  # who asks next is told by the document's state

    async def _anthropic_page(self, request: Request, documents: Any) -> dict[str, Any]:
        asked = request.query_params.getlist("ids") or request.query_params.getlist("ids[]")
        if asked:
            documents = [d for d in documents if file_id_of(d["id"]) in asked]
            page, has_more = documents, False
        else:
            documents = documents[::-1]
            after = request.query_params.get("page", "").removeprefix("page_") or None
            page, has_more = _page(documents, after, _limit(request, 20, 1000))
        data = [await self._shown(request, document) for document in page]
        return {"data": data, "next_page": f"page_{data[-1]['id']}" if has_more else None}

    async def _shown(self, request: Request, document: Document) -> dict[str, Any]:
        upload = await asyncio.to_thread(
            self._world.uploads.facts, document["namespace"], document["id"]
        )
        num_bytes = document["num_bytes"] if upload is None else upload.num_bytes
        if is_anthropic(request):
            return {
                "id": file_id_of(document["id"]),
                "type": "file",
                "filename": document["name"] or document["id"],
                "mime_type": "text/plain" if upload is None else upload.media_type,
                "size_bytes": num_bytes,
                "created_at": _time(document["created_at"]),
                "expires_at": _time(document["expires_at"]),
                "downloadable": True,
            }
        expires_at = document["expires_at"]
        return {
            "id": file_id_of(document["id"]),
            "object": "file",
            "bytes": num_bytes,
            "created_at": int(document["created_at"]),
            "expires_at": None if expires_at is None else int(expires_at),
            "filename": document["name"] or document["id"],
            "purpose": PURPOSE,
            "status": _STATUS.get(document["state"], "error"),
            "status_details": document["failure"],
            "legokv": {
                "num_tokens": document["num_tokens"],
                "num_chunks": document["num_chunks"],
                "compiled_chunks": document["compiled_chunks"],
                "last_used_at": document["last_used_at"],
                **({"tiers": document["tiers"]} if "tiers" in document else {}),
            },
        }


def _ttl_seconds(fields: dict[str, str], *, needs_purpose: bool) -> float | None:
    for name in fields:
        if name not in _UPLOAD_FIELDS:
            raise ApiRefused(f"unknown field {name[:80]!r} in the form", param=name[:80])
    purpose = fields.get("purpose", "" if needs_purpose else PURPOSE)
    if purpose != PURPOSE:
        raise ApiRefused(f"'purpose' is {PURPOSE}, not {purpose[:80]!r}", param="purpose")
    anchor = fields.get("expires_after[anchor]", "created_at")
    if anchor != "created_at":
        raise ApiRefused(f"a file expires after 'created_at', not {anchor[:80]!r}", param="anchor")
    seconds = fields.get("expires_after[seconds]")
    if seconds is None:
        return None
    if not (seconds.isascii() and seconds.isdigit() and 0 < int(seconds[:12]) < MAX_TTL_SECONDS):
        raise ApiRefused(
            f"'expires_after[seconds]' is a whole number of seconds from 1, not {seconds[:80]!r}",
            param="expires_after[seconds]",
        )
    return float(seconds[:12])


def _short_name(filename: str) -> str:
    """The name without folders, as long as a document's may be."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return (name.encode(errors="replace").decode() or "file")[:MAX_NAME_LEN]


def _limit(request: Request, default: int, most: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ApiRefused(f"'limit' is from 1 to {most}, not {text[:80]!r}", param="limit")
    return int(text[:9])


def _page(documents: Any, after: str | None, limit: int) -> tuple[Any, bool]:
    """Up to `limit` documents behind the file `after`, and whether there are more."""
    start = 0
    if after is not None:
        ids = [file_id_of(document["id"]) for document in documents]
        if after not in ids:
            raise ApiRefused(f"there is no file {after[:80]!r} to go on after", param="after")
        start = ids.index(after) + 1
    return documents[start : start + limit], start + limit < len(documents)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
