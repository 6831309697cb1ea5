"""Renders a chat template in a process of its own, which may take only so much time and memory.

A checkpoint's template is a program of others'. Whatever it does, the asker gets a text or one
sentence.
"""

import json
import math
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
    with TemplateProcess(template, special_tokens) as process:
        return process.render(chats)


class TemplateProcess:
    """A process that renders one template, chats after chats; it ends with this, or with ours.

    One that a template has ended is replaced at the next call. For one caller at a time.
    """

    def __init__(self, template: ChatTemplate, special_tokens: Mapping[str, str]) -> None:
        self._model = {"source": template.source, "special_tokens": dict(special_tokens)}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "TemplateProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def render(self, chats: Sequence[Chat]) -> list[Rendering]:
        """As `render_apart` has it."""
        asked = [asdict(chat) | {"day": chat.day.isoformat()} for chat in chats]
        answer = json.loads(self._answer(json.dumps(asked).encode() + b"\n"))
        if isinstance(answer, dict):
            raise _error(answer)
        return [item if isinstance(item, str) else _error(item) for item in answer]

    def _answer(self, line: bytes) -> bytes:
        process = self._started()
        assert process.stdin is not None, "it is asked by a pipe"
        assert process.stdout is not None, "and answers by one"
        overdue = threading.Timer(MAX_WALL_SECONDS, process.kill)
        overdue.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            is_overdue = not overdue.is_alive()
            overdue.cancel()
        if answer.endswith(b"\n"):
            return answer
        self._process = None
        _, errors_told = process.communicate()
        if is_overdue:
            raise UnsupportedModel(
                f"the chat template is still being rendered after {MAX_WALL_SECONDS} seconds"
            )
        raise UnsupportedModel(_why(process.returncode, errors_told))

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = subprocess.Popen(
                # -P: modules are ours and the environment's, never the working folder's.
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(),
            )
            assert self._process.stdin is not None, "it is asked by a pipe"
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(self._model).encode() + b"\n")
        return self._process


def environment() -> dict[str, str]:
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
    """Answer the requests on standard input, a line each behind one with the template."""
    model = json.loads(sys.stdin.readline())
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    template: ChatTemplate | None = None
    for line in sys.stdin:
        _limit_cpu()
        try:
            template = template or ChatTemplate(model["source"])
            answer: Any = _answer(template, model["special_tokens"], json.loads(line))
        except LegokvError as error:
            answer = _told(error)
        print(json.dumps(answer), flush=True)


def _limit_cpu() -> None:
    """So many seconds more than were used. The hard limit stays: it can't be raised again."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(usage.ru_utime + usage.ru_stime) + MAX_CPU_SECONDS
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def limit(which: int, most: int) -> None:
    """Set a limit of this process, where it has not a narrower one."""
    hard = resource.getrlimit(which)[1]
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (bound, bound))


def _answer(
    template: ChatTemplate, special_tokens: Mapping[str, str], asked: Sequence[Any]
) -> list[str | dict[str, str]]:
    chats = [replace(Chat(**chat), day=date.fromisoformat(chat["day"])) for chat in asked]
    if any(chat.switches for chat in chats):
        _refuse_unknown(template, {name for chat in chats for name in chat.switches})
    return [_rendering(template, chat, special_tokens) for chat in chats]


def _refuse_unknown(template: ChatTemplate, names: set[str]) -> None:
    names_read = template.switch_names()
    unknown = sorted(names - names_read)
    if unknown:
        listing = ", ".join(sorted(names_read)[:20]) or "none"
        raise InvalidRequest(
            f"chat_template_kwargs: the chat template does not read {unknown[0][:80]!r}; "
            f"what it reads: {listing[:300]}"
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
