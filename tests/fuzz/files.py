"""Damages files that the commands read, one after the other, and asks what came of each.

A command may take the file or refuse it in a sentence with status 1. Anything else is a fault.
"""

import contextlib
import io
import json
import re
import shutil
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz import values
from fuzz.values import Dice

LONGEST_SENTENCE = 2_000
SLOWEST_SECONDS = 60


@dataclass(frozen=True)
class Fault:
    """`content` is the file that met it, which the caller may keep."""

    file: str
    content: bytes
    why: str


_BAR = re.compile(r"\r[^\r\n]*\n?|[^\r\n]*\d%\|[^\r\n]*\n?")
"""What a library's progress bar draws."""


def fault_of(file: str, content: bytes, command: Callable[[], int]) -> Fault | None:
    """What is wrong with how a command ends over a file of this content."""
    said = io.StringIO()
    started = time.monotonic()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = command()
    except BaseException:  # noqa: BLE001 - whatever leaves a command is what is looked for
        return Fault(file, content, traceback.format_exc()[-1500:])
    words, seconds = _BAR.sub("", said.getvalue()), time.monotonic() - started
    if status not in (0, 1):
        return Fault(file, content, f"status {status}: {words[:300]}")
    if status == 1 and not (0 < len(words) <= LONGEST_SENTENCE and words.count("\n") <= 2):
        return Fault(file, content, f"no sentence: {words[:3000]!r}")
    if not words.replace("\n", "").isprintable() or "Traceback" in words:
        return Fault(file, content, f"not to be printed: {words[:300]!r}")
    if seconds > SLOWEST_SECONDS:
        return Fault(file, content, f"{seconds:.0f} s")
    return None


def damaged_file(dice: Dice, path: Path) -> bytes:
    """The file's content with something wrong: bytes, or a value where it is JSON."""
    content = path.read_bytes()
    form = dice.random()
    if path.suffix == ".json" and form < 0.7:
        return values.as_json(damaged_json(dice, json.loads(content)))
    if path.suffix == ".safetensors" and form < 0.6:
        return _damaged_header(dice, content)
    if form > 0.97:
        return dice.choice((b"", b"{}", b"[]", b"null", b"\xff" * 9, values.deep(dice), POINTER))
    return values.damaged(dice, content)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n"


def damaged_json(dice: Dice, value: Any) -> Any:
    """The same with one value, or one name, that is another; or without it."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.1:
        return values.json_value(dice)
    if isinstance(value, list):
        place = dice.randrange(min(len(value), 50))
        return [*value[:place], damaged_json(dice, value[place]), *value[place + 1 :]]
    name = dice.choice(list(value))
    rest = {key: each for key, each in value.items() if key != name}
    form = dice.random()
    if form < 0.1:
        return rest
    if form < 0.2:
        return {**rest, values.text(dice): value[name]}
    return {**value, name: damaged_json(dice, value[name])}


def _damaged_header(dice: Dice, content: bytes) -> bytes:
    """Of a safetensors file: its first 8 bytes are the length of the JSON that follows them."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    damage = values.as_json(damaged_json(dice, header))
    number = len(damage) if dice.random() < 0.8 else dice.choice((0, 2**31, 2**63, length + 1))
    return number.to_bytes(8, "little") + damage + content[8 + length :]


Command = Callable[[Path], int]
"""Reads the files in a folder; its exit status, after a sentence on standard error if it is 1."""


@dataclass(frozen=True)
class Subject:
    """`sound` is a folder; in each copy of it that the commands are given, one file is damaged.

    `damaged` gives that file's content with something wrong. It may write to it meanwhile.
    """

    name: str
    sound: Path
    commands: tuple[Command, ...]
    damaged: Callable[[Dice, Path], bytes] = damaged_file


def faults(subject: Subject, work: Path, seed: int) -> Iterator[Fault | None]:
    """For ever, one for each command and damaged copy, which lies in the folder `work`."""
    dice = Dice(seed)
    while True:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(subject.sound, work / "copy")
        files = sorted(path for path in (work / "copy").rglob("*") if path.is_file())
        path = dice.choice(files)
        content = subject.damaged(dice, path)
        path.write_bytes(content)
        for command in subject.commands:
            yield fault_of(path.name, content, lambda run=command: run(work / "copy"))


def damaged_archive(dice: Dice, content: bytes) -> bytes:
    """Bytes of the whole, or a member's kind, name, size or content."""
    if dice.random() < 0.3:
        return values.damaged(dice, content)
    damage = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(fileobj=damage, mode="w") as new,
    ):
        members = old.getmembers()
        chosen = dice.randrange(len(members))
        for number, member in enumerate(members):
            file = old.extractfile(member)
            body = file.read() if file else b""
            if number == chosen:
                body = _damaged_member(dice, member, body)
            if member.isreg():
                member.size = len(body)
            new.addfile(member, io.BytesIO(body))
    return damage.getvalue()


_KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def _damaged_member(dice: Dice, member: tarfile.TarInfo, body: bytes) -> bytes:
    form = dice.randrange(5)
    if form == 0:
        member.type = dice.choice(_KINDS)
        member.linkname = dice.choice(("/etc/passwd", "../x", "documents.json", ""))
        member.size = 0
        return b""
    if form == 1:
        member.name = dice.choice(
            ("../x", "/x", values.text(dice).replace("\0", "") or "x", "documents.json")
        )
        return body
    if form == 2 and member.name.endswith(".json"):
        return values.as_json(damaged_json(dice, json.loads(body)))
    return values.damaged(dice, body)
