"""`/v1/files`: documents of the registry as files, in OpenAI's shape and in Anthropic's."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from legokv.documents.document import MAX_TTL_SECONDS, normalise_text
from legokv.errors import ApiRefused, NotFound
from legokv.serving.fields import Reader
from legokv.serving.fields import Request as Fields
from legokv.serving.gateway.accounts import Account
from legokv.serving.gateway.bodies import form_body, while_client_stays
from legokv.serving.gateway.extract import MEDIA_TYPES, text_of
from legokv.serving.gateway.library import (
    INLINE,
    Upload,
    document_id_of,
    file_id_of,
    shown_name,
)
from legokv.serving.gateway.refusals import is_anthropic
from legokv.serving.gateway.world import World

PURPOSE = "user_data"
MAX_PAGE_LEN = 10_000
_PAGE_LEN = 1000
_ROWS_A_TRIP = 256
"""At least: texts of chats and what is over may stand in between."""
_PREPARED_AT_ONCE = 4
"""Files that are compiled and ranked behind requests: each holds a thread meanwhile."""
MAX_IDS = 100
_STATUS = {"registered": "uploaded", "compiling": "uploaded", "ready": "processed"}
ORDERS = ("asc", "desc")

Document = dict[str, Any]

log = logging.getLogger(__name__)


class Files:
    """The endpoints. `account` is who asks; documents of other namespaces are not there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._under_way: dict[tuple[str, bool], asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_PREPARED_AT_ONCE)

    async def upload(self, request: Request, account: Account) -> Response:
        """Register what the form's file says; it is compiled afterwards."""
        world = self._world
        name, media_type, data, others = await form_body(request, world.settings.request_bytes)
        values = _form_values(others, needs_purpose=not is_anthropic(request))
        text, kind = await text_of(name, media_type, data)
        reply = await world.models.documents(
            "create",
            namespace=account.namespace(),
            namespace_bytes=account.stored_bytes,
            text=text,
            name=shown_name(name),
            ttl_seconds=values.get("expires_after[seconds]"),
            wait=False,
            rank=False,
        )
        document = reply["document"]
        by_default = "true" if world.settings.rank_documents == "on" else "false"
        if values.get("rank", by_default) == "true":
            self._begin(account.namespace(), document["id"], rank=True)
        upload = Upload(len(data), MEDIA_TYPES[kind])
        if data != normalise_text(text).encode():
            await asyncio.to_thread(
                world.uploads.keep, account.namespace(), document["id"], upload, data
            )
        return JSONResponse(await self._shown(request, document))

    async def list_files(self, request: Request, account: Account) -> Response:
        """A page of the account's files; it is looked for as long as its client waits."""
        return await while_client_stays(request, self._list(request, account))

    async def _list(self, request: Request, account: Account) -> Response:
        if is_anthropic(request):
            return JSONResponse(await self._anthropic_page(request, account))
        query = request.query_params
        limit, order = _limit(request, MAX_PAGE_LEN, MAX_PAGE_LEN), query.get("order", "desc")
        if order not in ORDERS:
            raise ApiRefused(f"'order' is asc or desc, not {order[:80]!r}", param="order")
        if query.get("purpose", PURPOSE) != PURPOSE:
            page: list[Document] = []
            has_more = False
        else:
            options = {"newest_first": order == "desc", "tiers": query.get("tiers") == "true"}
            page, has_more = await self._page(account, query.get("after"), limit, options)
        data = await self._shown_all(request, page)
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
            self._begin(account.namespace(), document["id"])
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

    async def _page(
        self, account: Account, after: str | None, limit: int, options: dict[str, bool]
    ) -> tuple[list[Document], bool]:
        """Up to `limit` files behind the file `after`, and whether there are more.

        Texts of chats and what is over are passed by.
        """
        place: Any = 0 if after is None else document_id_of(after)
        documents: list[Document] = []
        while place is not None and len(documents) <= limit:
            number = min(_PAGE_LEN, max(_ROWS_A_TRIP, limit + 1 - len(documents)))
            fields = {"namespace": account.namespace(), "after": place, "limit": number}
            try:
                reply = await self._world.models.documents("list", **fields, **options)
            except NotFound:
                raise ApiRefused(
                    f"there is no file {str(after)[:80]!r} to go on after", param="after"
                ) from None
            documents += filter(self._is_file, reply["documents"])
            place = reply["next_after"]
        return documents[:limit], len(documents) > limit

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

    def _begin(self, namespace: str, document_id: str, *, rank: bool = False) -> None:
        """Have it compiled, and ranked, behind this request, in its turn."""
        place = (document_id, rank)
        if place in self._under_way:
            return

        async def compile_now() -> None:
            async with self._turns:
                reply = await self._world.models.documents(
                    "get", namespace=namespace, id=document_id, wait=True, rank=rank
                )
            num_ranked, num_chunks = reply.get("ranked_chunks", 0), reply["document"]["num_chunks"]
            if rank and num_ranked < num_chunks:
                log.warning(
                    "%s: %d of its %d chunks are ranked; an upload of the same with 'rank' tries "
                    "again",
                    *(document_id, num_ranked, num_chunks),
                )

        def over(task: "asyncio.Task[None]") -> None:
            # Who asks next is told by the document's state.
            del self._under_way[place]
            error = None if task.cancelled() else task.exception()
            if error is not None:
                what = "compiled and ranked" if rank else "compiled"
                log.warning("%s was not %s behind its request: %s", document_id, what, error)

        self._under_way[place] = asyncio.create_task(compile_now())
        self._under_way[place].add_done_callback(over)

    def _status(self, document: Document) -> str:
        """A file that is to be ranked is processed when it is."""
        is_ranked = (document["id"], True) not in self._under_way
        status = _STATUS.get(document["state"], "error")
        return status if is_ranked or status == "error" else "uploaded"

    async def _anthropic_page(self, request: Request, account: Account) -> dict[str, Any]:
        query = request.query_params
        asked = query.getlist("ids") or query.getlist("ids[]")
        if len(asked) > MAX_IDS:
            raise ApiRefused(f"'ids' are {len(asked)}, at most {MAX_IDS} are taken", param="ids")
        if asked:
            page, has_more = await self._of_ids(account, asked), False
        else:
            after = query.get("page", "").removeprefix("page_") or None
            options = {"newest_first": True}
            page, has_more = await self._page(account, after, _limit(request, 20, 1000), options)
        data = await self._shown_all(request, page)
        return {"data": data, "next_page": f"page_{data[-1]['id']}" if has_more else None}

    async def _of_ids(self, account: Account, ids: Sequence[str]) -> list[Document]:
        """The files of these ids, without those that are not there."""
        documents = []
        for file_id in dict.fromkeys(ids):
            with suppress(NotFound):
                reply = await self._world.models.documents(
                    "get", namespace=account.namespace(), id=document_id_of(file_id)
                )
                documents.append(reply["document"])
        return [document for document in documents if self._is_file(document)]

    async def _shown(self, request: Request, document: Document) -> dict[str, Any]:
        (one,) = await self._shown_all(request, [document])
        return one

    async def _shown_all(
        self, request: Request, documents: Sequence[Document]
    ) -> list[dict[str, Any]]:
        facts = self._world.uploads.facts

        def uploads() -> list[Upload | None]:
            return [facts(document["namespace"], document["id"]) for document in documents]

        originals = await asyncio.to_thread(uploads)
        pairs = zip(documents, originals, strict=True)
        if is_anthropic(request):
            return [_anthropic_object(document, upload) for document, upload in pairs]
        return [_object(document, upload, self._status(document)) for document, upload in pairs]


def _anthropic_object(document: Document, upload: Upload | None) -> dict[str, Any]:
    return {
        "id": file_id_of(document["id"]),
        "type": "file",
        "filename": document["name"] or document["id"],
        "mime_type": "text/plain" if upload is None else upload.media_type,
        "size_bytes": document["num_bytes"] if upload is None else upload.num_bytes,
        "created_at": _time(document["created_at"]),
        "expires_at": _time(document["expires_at"]),
        "downloadable": True,
    }


def _object(document: Document, upload: Upload | None, status: str) -> dict[str, Any]:
    """A file as OpenAI's API shows it."""
    expires_at = document["expires_at"]
    return {
        "id": file_id_of(document["id"]),
        "object": "file",
        "bytes": document["num_bytes"] if upload is None else upload.num_bytes,
        "created_at": int(document["created_at"]),
        "expires_at": None if expires_at is None else int(expires_at),
        "filename": document["name"] or document["id"],
        "purpose": PURPOSE,
        "status": status,
        "status_details": document["failure"],
        "legokv": {
            "num_tokens": document["num_tokens"],
            "num_chunks": document["num_chunks"],
            "compiled_chunks": document["compiled_chunks"],
            "last_used_at": document["last_used_at"],
            **({"tiers": document["tiers"]} if "tiers" in document else {}),
        },
    }


def upload(request: Fields, name: str) -> str:
    """The file itself, which is read with the form."""
    raise ApiRefused(f"{name!r} is a part with a filename, not a text", param=name)


def word(request: Fields, name: str, *, choices: Sequence[str]) -> str:
    """One of the choices."""
    value: str = request[name]
    if value not in choices:
        listed = " or ".join(choices)
        raise ApiRefused(f"{name!r} is {listed}, not {value[:80]!r}", param=name)
    return value


def digits(request: Fields, name: str, *, below: float) -> int:
    """A whole number of seconds from 1."""
    value: str = request[name]
    if not (value.isascii() and value.isdigit() and 0 < int(value[:12]) < below):
        raise ApiRefused(
            f"{name!r} is a whole number of seconds from 1 to {below - 1:.0f}, not {value[:80]!r}",
            param=name,
        )
    return int(value[:12])


FORM: dict[str, Reader] = {
    "file": upload,
    "purpose": partial(word, choices=(PURPOSE,)),
    "expires_after[anchor]": partial(word, choices=("created_at",)),
    "expires_after[seconds]": partial(digits, below=MAX_TTL_SECONDS),
    "rank": partial(word, choices=("true", "false")),
}


def _form_values(form: dict[str, str], *, needs_purpose: bool) -> dict[str, Any]:
    for name in form:
        if name not in FORM:
            raise ApiRefused(f"unknown field {name[:80]!r} in the form", param=name[:80])
    if needs_purpose and "purpose" not in form:
        raise ApiRefused(f"'purpose' is missing in the form: {PURPOSE}", param="purpose")
    return {name: FORM[name](form, name) for name in form}


def _limit(request: Request, default: int, most: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ApiRefused(f"'limit' is from 1 to {most}, not {text[:80]!r}", param="limit")
    return int(text[:9])


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
