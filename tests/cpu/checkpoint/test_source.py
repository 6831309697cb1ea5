"""What --checkpoint may name besides a folder with config.json."""

from pathlib import Path

import pytest

from legokv.checkpoint.source import checkpoint_folder
from legokv.errors import InvalidRequest


def found(source: Path) -> Path:
    return checkpoint_folder("llama", source, source.parent / "checkpoints", print)


def cached_repository(folder: Path, *revisions: str, main: str | None = None) -> Path:
    """As Hugging Face's cache keeps one: blobs, links to them by revision, and names of these."""
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "0b1ob").write_text("{}")
    for revision in revisions:
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / "config.json").symlink_to("../../blobs/0b1ob")
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_of_a_cached_repository_the_snapshot_that_main_names_is_taken(tmp_path: Path) -> None:
    folder = cached_repository(tmp_path / "models--a--b", "12ab", "34cd", main="34cd")
    assert found(folder) == folder / "snapshots" / "34cd"


def test_a_single_snapshot_needs_no_name(tmp_path: Path) -> None:
    folder = cached_repository(tmp_path / "models--a--b", "12ab")
    assert found(folder) == folder / "snapshots" / "12ab"


def test_several_snapshots_of_which_none_is_named_are_refused(tmp_path: Path) -> None:
    folder = cached_repository(tmp_path / "models--a--b", "12ab", "34cd", main="gone")
    with pytest.raises(InvalidRequest, match="holds 2 snapshots, and refs/main names none"):
        found(folder)


def test_a_folder_of_gguf_files_says_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"name one of the files, as a\.gguf"):
        found(tmp_path)


def test_a_folder_of_its_own_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "snapshots").mkdir()
    assert found(tmp_path) == tmp_path
