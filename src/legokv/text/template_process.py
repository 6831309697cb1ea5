"""Renders a chat template in a process of its own, which may take only so much time and memory.

A checkpoint's template is a program of others'. Whatever it does, the asker gets a text or one
sentence.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from typing import Any

from legokv import errors
from legokv.errors import InvalidRequest, LegokvError, UnsupportedModel
from legokv.text.chat_template import Chat, ChatTemplate

MAX_CPU_SECONDS = 5
MAX_WALL_SECONDS = 60
"""More than the CPU's, for a machine whose cores are taken."""
MAX_MEMORY_BYTES = 1 << 30

Rendering = str | LegokvError


def render_apart(
    template: ChatTemplate, special_tokens: Mapping[str, str], chats: Sequence[Chat]
) -> list[Rendering]:
    """Each chat's text, or the error that its rendering ends with.

    UnsupportedModel if the template takes more time or memory than it may. InvalidRequest for a
    switch that it does not know.
    """
    asked = {
        "source": template.source,
        "special_tokens": dict(special_tokens),
        "chats": [asdict(chat) | {"day": chat.day.isoformat()} for chat in chats],
    }
    try:
        finished = subprocess.run(
            # -P: modules are ours and the environment's, never the working folder's.
            [sys.executable, "-P", "-m", __name__],
            input=json.dumps(asked).encode(),
            env=_environment(),
            capture_output=True,
            check=False,
            timeout=MAX_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedModel(
            f"the chat template is still being rendered after {MAX_WALL_SECONDS} seconds"
        ) from None
    if finished.returncode:
        raise UnsupportedModel(_why(finished.returncode, finished.stderr))
    answer = json.loads(finished.stdout)
    if isinstance(answer, dict):
        raise _error(answer)
    return [item if isinstance(item, str) else _error(item) for item in answer]


def _environment() -> dict[str, str]:
    """This process's, without the server's settings and its secret."""
    return {name: text for name, text in os.environ.items() if not name.startswith("LEGOKV_")}


def _why(status: int, log: bytes) -> str:
    if status < 0:
        return (
            "the chat template ended the process that rendered it (signal "
            f"{-status}): it may take {MAX_CPU_SECONDS} seconds and {MAX_MEMORY_BYTES >> 20} MiB"
        )
    lines = log.decode("utf-8", "replace").strip().splitlines()
    return f"the chat template can't be rendered: {lines[-1][:300] if lines else f'{status=}'}"


def _error(item: Mapping[str, str]) -> LegokvError:
    kind: type[LegokvError] = getattr(errors, item["kind"])
    return kind(item["message"])


def main() -> None:
    """Answer the one request on standard input."""
    asked = json.load(sys.stdin)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, MAX_CPU_SECONDS)
    try:
        answer: Any = _answer(asked)
    except LegokvError as error:
        answer = _told(error)
    json.dump(answer, sys.stdout)


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (bound, bound))


def _answer(asked: Mapping[str, Any]) -> list[str | dict[str, str]]:
    template = ChatTemplate(asked["source"])
    chats = [replace(Chat(**chat), day=date.fromisoformat(chat["day"])) for chat in asked["chats"]]
    if any(chat.switches for chat in chats):
        _refuse_unknown(template, {name for chat in chats for name in chat.switches})
    return [_rendering(template, chat, asked["special_tokens"]) for chat in chats]


def _refuse_unknown(template: ChatTemplate, names: set[str]) -> None:
    names_read = template.switch_names()
    unknown = sorted(names - names_read)
    if unknown:
        listing = ", ".join(sorted(names_read)[:20]) or "none"
        raise InvalidRequest(
            f"the chat template does not read {unknown[0][:80]!r}; what it reads: {listing[:300]}"
        )


def _rendering(
    template: ChatTemplate, chat: Chat, special_tokens: Mapping[str, str]
) -> str | dict[str, str]:
    try:
        return template.render(chat, special_tokens)
    except LegokvError as error:
        return _told(error)


def _told(error: LegokvError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()
