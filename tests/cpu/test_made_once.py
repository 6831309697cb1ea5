"""What tests share in a session is made by one of them, whole, and the others wait for it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_once import made_once


@pytest.fixture
def factory(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.TempPathFactory:
    """As in a worker of a session whose folder is this test's."""
    monkeypatch.setattr(tmp_path_factory, "getbasetemp", lambda: tmp_path / "popen-gw0")
    return tmp_path_factory


def test_of_several_who_ask_one_makes_it_and_the_others_get_it_whole(
    factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        time.sleep(0.2)
        (folder / "last").touch()

    def asked(_: int) -> bool:
        return (made_once(factory, "of/all", make) / "last").exists()

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(asked, range(4)))
    assert made == [tmp_path / "made" / "of" / "all"]


def test_what_failed_half_made_is_made_anew_by_the_next_who_asks(
    factory: pytest.TempPathFactory,
) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(factory, "one", fail)
    assert list(made_once(factory, "one", Path.mkdir).iterdir()) == []


def test_a_session_without_workers_keeps_what_it_made_to_itself(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setattr(tmp_path_factory, "getbasetemp", lambda: tmp_path / "pytest-7")
    assert made_once(tmp_path_factory, "one", Path.mkdir) == tmp_path / "pytest-7" / "made" / "one"
