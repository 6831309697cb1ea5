"""What may be damaged on disk, and the commands that read it: checkpoints, engines, caches."""

import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from folder_machine import FolderMachine
from fuzz import values
from fuzz.files import Command, Subject, damaged_archive, damaged_file
from fuzz.values import Dice
from paths import ROOT
from sentencepiece_like import LLAMA, sentencepiece_backend
from tiny_checkpoints import make_tiny_checkpoint
from tiny_gguf import write_gguf

from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.cli import main
from legokv.errors import LegokvError


def checkpoints(folder: Path) -> Iterator[Subject]:
    """Tiny ones of each form that a build takes."""
    for name in ("llama", "llama-biased", "llama-yarn", "qwen2", "qwen3", "mistral"):
        yield Subject(name, make_tiny_checkpoint(name, folder / name), (build,))
    sharded = make_tiny_checkpoint("llama3", folder / "sharded", max_shard_size="100KB")
    yield Subject("sharded", sharded, (build,))
    for form, unigram in (("prepend", False), ("first", False), ("always", True)):
        path = _sentencepiece(folder / f"sentencepiece-{form}", form, unigram)
        yield Subject(path.name, path, (build,))
    file = folder / "gguf" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(file, folder / "llama")
    yield Subject("gguf", file.parent, (_build_gguf,), _damaged_gguf)


def caches(folder: Path) -> Iterator[Subject]:
    """An engine folder, the cache of a model, and what it exports."""
    engine = folder / "engine"
    settings = BuildSettings("llama", dtype="float32")
    checkpoint = make_tiny_checkpoint("llama", folder / "ckpt")
    build_engine_folder(checkpoint, engine, settings, say=lambda line: None)
    machine = FolderMachine(engine, folder / "cache")
    for number in range(3):
        machine.register(number)
    machine.registry.close()
    archive = folder / "archive" / "set.tar"
    archive.parent.mkdir()
    here = ["--engine", str(engine), "--cache-dir", str(folder / "cache")]
    with contextlib.redirect_stdout(sys.stderr):
        assert main(["cache", "export", *here, str(archive)]) == 0
    there = ["--engine", str(engine), "--cache-dir", str(folder / "there")]
    yield Subject("engine", engine, (_answer_of_engine,))
    yield Subject("cache", folder / "cache", _cache_commands(engine), _damaged_cache_file)
    yield Subject(
        "archive",
        archive.parent,
        (lambda path: main(["cache", "import", *there, str(path / "set.tar")]),),
        lambda dice, path: damaged_archive(dice, path.read_bytes()),
    )


def _sentencepiece(folder: Path, form: str, unigram: bool) -> Path:
    make_tiny_checkpoint("llama-untied", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    backend = sentencepiece_backend(form, unigram=unigram)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    declared = {"added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}
    config = {**special, **declared, "add_bos_token": True, "chat_template": LLAMA}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"</s>": 2}), encoding="utf-8")
    return folder


def build(checkpoint: Path) -> int:
    scripts = str(ROOT / "build")
    if scripts not in sys.path:
        sys.path.insert(0, scripts)
    import build_engine
    import ending
    import engine_command

    output = checkpoint.parent / "out"
    where = ["--checkpoint", str(checkpoint), "--output", str(output / "engine")]
    with mock.patch.object(ending, "_on_signals"), mock.patch.object(engine_command, "OUT", output):
        return build_engine.main([*where, "--backend", "torch", "--no-onnx", "--keep-failed"])


def _build_gguf(folder: Path) -> int:
    return build(folder / "tiny.gguf")


def _answer_of_engine(engine: Path) -> int:
    """What a server does with it before it is ready, and a first answer."""

    def answer() -> None:
        machine = FolderMachine(engine, engine.parent / "cache")
        machine.answer(machine.register(0))

    return _said(answer)


def _said(work: Callable[[], object]) -> int:
    try:
        work()
    except LegokvError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _cache_commands(engine: Path) -> tuple[Command, ...]:
    def command(kind: str, *more: str) -> Command:
        def run(cache: Path) -> int:
            options = ["--engine", str(engine), "--cache-dir", str(cache)]
            return main(["cache", kind, *options, *more])

        return run

    def answer(cache: Path) -> int:
        def all_documents() -> None:
            machine = FolderMachine(engine, cache)
            for number in (0, 1, 2):
                machine.answer(machine.register(number))

        return _said(all_documents)

    def export(cache: Path) -> int:
        return command("export", str(cache.parent / "out.tar"))(cache)

    def verify(cache: Path) -> int:
        """1 without a sentence says that something was wrong and is mended."""
        status = command("verify")(cache)
        if status == 1:
            print("mended", file=sys.stderr)
        return status

    def models(cache: Path) -> int:
        return main(["cache", "models", "--cache-dir", str(cache)])

    return (command("stats"), answer, export, verify, models)


def _damaged_gguf(dice: Dice, path: Path) -> bytes:
    """Mostly in what stands before the weights: counts, keys, the vocabulary."""
    content = path.read_bytes()
    size = len(content) if dice.random() < 0.1 else dice.choice((200, GGUF_HEADER_BYTES))
    return values.damaged(dice, content[:size]) + content[size:]


GGUF_HEADER_BYTES = 20_000


def _damaged_cache_file(dice: Dice, path: Path) -> bytes:
    if path.name != "registry.sqlite" or dice.random() < 0.3:
        return damaged_file(dice, path)
    return _damaged_rows(dice, path)


def _damaged_rows(dice: Dice, path: Path) -> bytes:
    """A registry with one value, or its version, that no legokv wrote; or without a table."""
    connection = sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(connection), contextlib.suppress(sqlite3.Error, OverflowError):
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        table = dice.choice([row[0] for row in rows if not row[0].startswith("sqlite_")])
        form = dice.random()
        if form < 0.1:
            connection.execute(f"PRAGMA user_version = {dice.choice((0, 1, 2, 4, 99, -1))}")
        elif form < 0.2:
            connection.execute(f"DROP TABLE {table}")
        elif form < 0.3:
            connection.execute(f"DELETE FROM {table}")
        else:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            value = dice.choice((values.text(dice), values.number(dice), values.raw(dice), None))
            connection.execute(f"UPDATE {table} SET {dice.choice(columns)} = ?", (value,))
    with contextlib.closing(sqlite3.connect(path)) as whole:
        return whole.serialize()
