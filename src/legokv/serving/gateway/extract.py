"""Text of an uploaded file. PDF and HTML are read in a process apart, with bounds of its own.

Run as a program it reads bytes from its input and writes their text to its output.
"""

import asyncio
import io
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from weakref import WeakKeyDictionary

from legokv.errors import ApiRefused, Busy

MAX_SECONDS = 60
MAX_CPU_SECONDS = 10
MAX_MEMORY_BYTES = 2**30
AT_ONCE, MAX_WAITING = 2, 16
"""Files that are read at once, and that wait for their turn; what comes then is told so."""
_PDF, _HTML, _TEXT = "pdf", "html", "text"
_KINDS = {
    _PDF: (".pdf",),
    _HTML: (".html", ".htm", ".xhtml"),
    _TEXT: (
        *(".txt", ".md", ".markdown", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml"),
        *(".yml", ".toml", ".ini", ".log", ".tex", ".py", ".js", ".ts", ".c", ".h", ".cpp", ".cu"),
        *(".java", ".go", ".rs", ".rb", ".php", ".sh", ".sql", ".css", ".diff", ".patch", ""),
    ),
}
_MEDIA_TYPES = {"application/pdf": _PDF, "text/html": _HTML, "application/xhtml+xml": _HTML}
MEDIA_TYPES = {_PDF: "application/pdf", _HTML: "text/html", _TEXT: "text/plain"}
_BREAKING_TAGS = (
    "title",
    "p",
    "div",
    "li",
    "tr",
    "br",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "section",
    "td",
)


def kind_of(filename: str, media_type: str, data: bytes) -> str:
    """ "pdf", "html" or "text"; ApiRefused by name for a file that is neither."""
    media_type = media_type.partition(";")[0].strip().lower()
    if data.startswith(b"%PDF-"):
        return _PDF
    if media_type in _MEDIA_TYPES:
        return _MEDIA_TYPES[media_type]
    suffix = PurePath(filename).suffix.lower()
    kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), None)
    if kind is None and media_type.startswith("text/"):
        kind = _TEXT
    if kind is None:
        raise ApiRefused(
            f"{filename[:200]!r} is no file that text is read of here: text in UTF-8, PDF and HTML "
            "are",
            param="file",
            kind="unsupported_file",
        )
    return kind


async def text_of(filename: str, media_type: str, data: bytes) -> tuple[str, str]:
    """The file's text, and what kind of file it is.

    ApiRefused with status 422 if it cannot be read.
    """
    kind = kind_of(filename, media_type, data)
    if kind != _TEXT:
        text = await _text_apart(kind, data)
    else:
        text = _decoded(data)
    if not text.strip():
        raise _unreadable("there is no text in the file: nothing but blanks, or pictures")
    return text, kind


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(
            f"the file is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} of "
            f"{len(data)}"
        ) from None


def _unreadable(sentence: str) -> ApiRefused:
    return ApiRefused(sentence, 422, "file", "unreadable_file")


@dataclass
class _Turns:
    """Of one event loop's files."""

    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    num_waiting: int = 0


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


@asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    """A turn to read a file; Busy if too many wait for one."""
    turns = _turns.setdefault(asyncio.get_running_loop(), _Turns())
    if turns.num_waiting >= MAX_WAITING:
        raise Busy(
            f"{turns.num_waiting} files wait to be read as PDF or HTML, {AT_ONCE} at once: "
            "upload this one again in a minute"
        )
    turns.num_waiting += 1
    try:
        await turns.free.acquire()
    finally:
        turns.num_waiting -= 1
    try:
        yield
    finally:
        turns.free.release()


async def _text_apart(kind: str, data: bytes) -> str:
    async with _turn():
        return await _read_apart(kind, data)


async def _read_apart(kind: str, data: bytes) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "legokv.serving.gateway.extract",
        kind,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(MAX_SECONDS):
            output, _ = await process.communicate(data)
    except TimeoutError:
        raise _unreadable(f"the {kind} was not read within {MAX_SECONDS} s") from None
    except RuntimeError:
        # The process ended while it was written to, which asyncio's loops say in different ways.
        output = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == -signal.SIGXCPU:
        raise _unreadable(
            f"the {kind} was not read within {MAX_CPU_SECONDS} s of a processor's time"
        )
    if process.returncode or not output:
        raise _unreadable(f"the file is damaged, locked, or no {kind}: no text was read of it")
    return output.decode()


def _text_of_pdf(data: bytes) -> str:
    # Here, for only this program's process needs it.
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    return "\n\n".join(page.extract_text() for page in reader.pages)


def _text_of_html(data: bytes) -> str:
    import bs4

    soup = bs4.BeautifulSoup(data, "html.parser")
    for tag in soup(["script", "style", "noscript", "template"]):
        tag.decompose()
    for tag in soup(_BREAKING_TAGS):
        tag.append("\n")
    lines = (" ".join(line.split()) for line in soup.get_text().splitlines())
    return "\n".join(line for line in lines if line)


def main() -> None:
    """Read a file of the kind that the argument names; the status is not 0 if it cannot be."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1))
    # Answers come first.
    os.nice(10)
    read = {_PDF: _text_of_pdf, _HTML: _text_of_html}[sys.argv[1]]
    text = read(sys.stdin.buffer.read())
    sys.stdout.buffer.write(text.encode(errors="replace"))


if __name__ == "__main__":
    main()
