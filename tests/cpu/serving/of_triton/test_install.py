"""Where Triton's parts are laid out, and names of folders that it could not start from."""

from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from paths import ROOT

from legokv.errors import ServerError
from legokv.serving.triton.install import TritonInstall, lay_out_backend


@pytest.mark.parametrize("name", ["two words", "a;b", "$HOME", "it's", "a&b", "back`tick`"])
def test_a_folder_that_triton_s_shell_would_read_otherwise_is_refused(
    tmp_path: Path, name: str
) -> None:
    install = TritonInstall(tmp_path / "tritonserver", (), (), tmp_path / "model_repo")
    with pytest.raises(ServerError, match="set TMPDIR to a folder named by letters"):
        lay_out_backend(install, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    moved = TritonInstall(tmp_path / "tritonserver", (), (), tmp_path / name)
    with pytest.raises(ServerError, match="install legokv in a folder named by letters"):
        lay_out_backend(moved, tmp_path / "folder")


def test_letters_of_any_script_are_no_signs(tmp_path: Path) -> None:
    install = TritonInstall(tmp_path / "tritonserver", (), (), tmp_path / "model_repo")
    lay_out_backend(install, tmp_path / "é東-Ωμέγα_1.0")
    assert (tmp_path / "é東-Ωμέγα_1.0" / "python").is_dir()


def test_letters_past_ascii_are_refused_where_the_locale_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("locale.nl_langinfo", lambda what: "ANSI_X3.4-1968")
    install = TritonInstall(tmp_path / "tritonserver", (), (), tmp_path / "model_repo")
    with pytest.raises(ServerError, match=r"as ANSI_X3\.4-1968, .*: set LC_ALL=C\.UTF-8, or set"):
        lay_out_backend(install, tmp_path / "é東")
    lay_out_backend(install, tmp_path / "plain")


def test_a_wheel_has_the_models_the_page_and_all_else_that_a_server_reads() -> None:
    inside = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    for folder, place in ((ROOT / "model_repo", "legokv/model_repo"), (ROOT / "src", "")):
        files = [file for file in folder.rglob("*") if file.is_file()]
        wanted = {
            (Path(place) / file.relative_to(folder)).as_posix()
            for file in files
            if "__pycache__" not in file.parts
        }
        assert len(wanted) >= 6
        assert wanted <= inside
