"""Register, list, show, change and delete documents: python client/documents.py add PATH"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connection import (
    Refused,
    Server,
    add_connection_options,
    as_text,
    exit_status,
    leave,
    server_of,
)
from tqdm import tqdm

TEXT_SUFFIXES = (".txt", ".md", ".rst")
NEVER = "none"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_connection_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="register files, folders' text files, or '-' for stdin")
    add.add_argument("paths", nargs="+", metavar="PATH")
    add.add_argument("--name", help="default: a file's name without its suffix")
    commands.add_parser("list", help="all documents of the namespace")
    show = commands.add_parser("show", help="one document")
    show.add_argument("document", help="id or name")
    show.add_argument("--text", action="store_true", help="its text too")
    update = commands.add_parser("update", help="change a name, time to live or pin")
    update.add_argument("document", help="id or name")
    update.add_argument("--name")
    delete = commands.add_parser("delete", help="forget documents")
    delete.add_argument("documents", nargs="+", metavar="document", help="id or name")
    for command in (add, update):
        command.add_argument(
            "--ttl-seconds", type=seconds_or_never, help="unpin it after this time; none: never"
        )
    add.add_argument("--warm", choices=("pool", "host", "disk"), help="have its KV there by then")
    add.add_argument(
        "--rank", action="store_true", default=None, help="for modes with ranked in their names"
    )
    add.add_argument("--pin", dest="pinned", action="store_true", default=None)
    pins = update.add_mutually_exclusive_group()
    pins.add_argument("--pin", dest="pinned", action="store_true", default=None)
    pins.add_argument("--unpin", dest="pinned", action="store_false", default=None)
    for command in commands.choices.values():
        add_connection_options(command, again=True)
    return parser.parse_args(arguments)


def seconds_or_never(text: str) -> float | str:
    if text in (NEVER, "null"):  # as JSON calls it
        return NEVER
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds; {NEVER} is for ever")
    return seconds


def add(server: Server, arguments: argparse.Namespace) -> int:
    """Register everything that can be, tell of the rest; 1 if there was any."""
    files = [file for path in arguments.paths for file in files_of(path)]
    if arguments.name is not None and len(files) > 1:
        raise Refused(f"--name names one document, {len(files)} files are given")
    num_failed = 0
    # The bar shows on a terminal only, so that logs and pipes stay plain.
    for file in tqdm(files, desc="documents", unit="document", disable=None):
        try:
            document, note = added(server, file, arguments)
        except Refused as reason:
            num_failed += 1
            tqdm.write(f"error: {file or 'stdin'}: {reason}", file=sys.stderr)
            continue
        tqdm.write(document_line(document, arguments.format), file=sys.stdout)
        if note is not None:
            tqdm.write(f"{file or 'stdin'}: {note}", file=sys.stderr)
        # A name that was asked for is one that others are to find it by.
        failed = document["state"] == "failed" or (note is not None and arguments.name is not None)
        num_failed += failed
    return 1 if num_failed else 0


def added(
    server: Server, file: Path | None, arguments: argparse.Namespace
) -> tuple[dict[str, Any], str | None]:
    """The registered document, and what is to be said of its name, if it is not as asked.

    No other document loses its name, and no name stands for two. Refused, and nothing registered,
    if --name is another's.
    """
    text, name = text_of(file), name_of(file, arguments)
    other = None if name is None else other_called(server, name, text)
    if other is not None and arguments.name is not None:
        raise Refused(f"{name!r} is the name of {other}, whose text is another: {RENAME}")
    asked = {"warm": arguments.warm, "rank": arguments.rank}
    fields = changes_of(arguments) | {k: v for k, v in asked.items() if v is not None}
    fields.pop("name", None)
    reply = server.documents("create", text=text, **fields)
    document = reply["document"] | {
        k: reply[k] for k in ("ranked_chunks", "warmed_chunks") if k in reply
    }
    if name in (None, document["name"]):
        return document, None
    if document["name"] is not None:
        called = f"its text is document {document['id']} already, called {document['name']!r}"
        return document, f"{called}, and keeps that name: {RENAME}"
    if other is not None:
        return document, f"it has no name, for {name!r} is that of {other}: {RENAME}"
    named = server.documents("update", id=document["id"], name=name)["document"]
    return document | named, None


RENAME = "`documents.py update DOCUMENT --name NAME` gives a document another"


def name_of(file: Path | None, arguments: argparse.Namespace) -> str | None:
    if arguments.name is not None:
        return as_text(arguments.name)
    return None if file is None else as_text(file.stem)


def other_called(server: Server, name: str, text: str) -> str | None:
    """The id of a document of this name whose text is another, but for blanks."""
    for document in server.all_documents(name):
        kept = server.documents("get", id=document["id"], text=True)["text"]
        if kept.split() != text.split():
            return str(document["id"])
    return None


def files_of(path: str) -> Iterator[Path | None]:
    """The files to register for one argument; None stands for standard input."""
    if path == "-":
        yield None
    elif Path(path).is_dir():
        found = (f for f in sorted(Path(path).rglob("*")) if f.suffix in TEXT_SUFFIXES)
        files = [file for file in found if file.is_file()]
        if not files:
            raise Refused(f"{path} holds no file that ends in {', '.join(TEXT_SUFFIXES)}")
        yield from files
    else:
        yield Path(path)


def text_of(file: Path | None) -> str:
    try:
        content = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise Refused(error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise Refused(f"not UTF-8: {error.reason} at byte {error.start}") from None


def changes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("name", "ttl_seconds", "pinned")
    given = {name: getattr(arguments, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    if "name" in changes:
        changes["name"] = as_text(changes["name"])
    if changes.get("ttl_seconds") == NEVER:
        changes["ttl_seconds"] = None
    return changes


def list_all(server: Server, arguments: argparse.Namespace) -> int:
    for document in server.all_documents():
        print(document_line(document, arguments.format))
    return 0


def show(server: Server, arguments: argparse.Namespace) -> int:
    document_id = server.document_id(as_text(arguments.document))
    reply = server.documents("get", id=document_id, text=arguments.text)
    if arguments.format == "json":
        print(
            json.dumps(
                reply["document"] | {k: reply[k] for k in ("text",) if k in reply}, allow_nan=False
            )
        )
        return 0
    for name, value in reply["document"].items():
        print(f"{name:16} {value}")
    if "text" in reply:
        print(f"\n{reply['text']}")
    return 0


def update(server: Server, arguments: argparse.Namespace) -> int:
    document_id, changes = server.document_id(as_text(arguments.document)), changes_of(arguments)
    name = changes.get("name")
    others = [] if name is None else [d["id"] for d in server.all_documents(name)]
    others = [other for other in others if other != document_id]
    if others:
        raise Refused(f"{name!r} is the name of {others[0]}: {RENAME}")
    reply = server.documents("update", id=document_id, **changes)
    print(document_line(reply["document"], arguments.format))
    return 0


def delete(server: Server, arguments: argparse.Namespace) -> int:
    for name in arguments.documents:
        reply = server.documents("delete", id=server.document_id(as_text(name)))
        as_json = arguments.format == "json"
        print(json.dumps(reply, allow_nan=False) if as_json else f"deleted {reply['deleted']}")
    return 0


def document_line(document: dict[str, Any], form: str) -> str:
    if form == "json":
        return json.dumps(document, allow_nan=False)
    line = "{id}  {state:10} {num_tokens:>7} tokens {num_chunks:>4} chunks  {name}".format(
        **document | {"name": document["name"] or "-"}
    )
    if "ranked_chunks" in document:
        line += f"  {document['ranked_chunks']} of its chunks ranked"
    if "warmed_chunks" in document:
        line += f"  {document['warmed_chunks']} of its chunks warm"
    return line + (f"  ({document['failure']})" if document["failure"] else "")


COMMANDS = {"add": add, "list": list_all, "show": show, "update": update, "delete": delete}


def main(arguments: list[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    return exit_status(lambda: COMMANDS[parsed.command](server_of(parsed), parsed))


if __name__ == "__main__":
    leave(main())
