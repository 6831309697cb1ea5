"""The command line: what it refuses before a server is started, and with which exit status."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from paths import CLIENT

import legokv
from legokv.cli import main
from legokv.errors import EngineMismatch, ServerError
from legokv.serving.settings import Settings
from legokv.serving.triton import install
from legokv.serving.triton.install import (
    TritonInstall,
    find_triton,
    lay_out_backend,
    server_environment,
)


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"legokv {legokv.__version__}\n"


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for item in fields(Settings):
        assert f"--{item.name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {}, "no engine folder given: pass --engine DIR"),
        (["--engine", "/nowhere"], {}, "engine folder /nowhere does not exist"),
        (["--engine", __file__], {}, f"engine folder {__file__} is a file"),
        (["--engine", "/nowhere"], {"LEGOKV_SPEED": "9"}, "unknown setting 'speed'"),
        (["--engine", "/nowhere", "--pool-tokens", "x"], {}, "pool_tokens in the command line"),
    ],
)
def test_what_cannot_be_served_is_said_and_the_status_is_1(
    arguments: list[str],
    environment: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"legokv: {reason}")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "legokv: interrupted\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "legokv: [Errno 13] Permission denied"),
        (EngineMismatch("no\x1b[31m engine"), 1, "legokv: no\\x1b[31m engine\n"),
    ],
)
def test_a_command_ends_in_a_line_whatever_ends_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
    said: str,
) -> None:
    def fails(parsed: object) -> int:
        raise raised

    monkeypatch.setattr("legokv.cli._cache", fails)
    assert main(["cache", "models"]) == status
    assert capsys.readouterr().err.startswith(said)


def test_a_server_that_does_not_come_up_ends_with_the_reason_and_no_line_of_tritons(
    tiny_engine_folder: Callable[[], Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    ports = [f"--{name}-port=auto" for name in ("http", "grpc", "metrics", "api")]
    folders = [f"--engine={tiny_engine_folder()}", f"--cache-dir={tmp_path / 'cache'}"]
    result = subprocess.run(
        [sys.executable, "-m", "legokv.cli", "serve", *folders, *ports],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    # Which is seen first depends on how long the other models take to give up.
    assert re.match(r"legokv: .* (ended while starting|while the server started): ", last)
    assert "Not a directory" in last or "File exists" in last
    assert str(tmp_path / "cache") in last
    assert "failed to load" not in result.stderr
    assert "creating server" not in result.stderr


def test_numpy_2_is_refused_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.metadata, "version", lambda name: "2.1.0")
    with pytest.raises(ServerError, match=r"numpy 2.1.0 .* pip install 'numpy<2'"):
        find_triton()


def test_a_python_without_its_library_is_refused_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install.sysconfig, "get_config_var", lambda name: None)
    monkeypatch.setattr(install.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(install.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(ServerError, match=r"needs libpython3\.\d+\.so\.1\.0.*--enable-shared"):
        find_triton()


def test_the_backend_folder_holds_the_server_s_files_and_this_python_s_stub(
    tmp_path: Path,
) -> None:
    install = find_triton()
    lay_out_backend(install, tmp_path / "backends")
    names = {file.name for file in (tmp_path / "backends" / "python").iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_utils.py"} < names
    assert os.access(tmp_path / "backends" / "python" / "triton_python_backend_stub", os.X_OK)


def test_the_server_finds_this_python_first_and_keeps_the_caller_s_paths() -> None:
    install = TritonInstall(Path("/s"), (), (Path("/a"), Path("/b")), Path("/m"))
    made = server_environment(install, {"PATH": "/bin", "LD_LIBRARY_PATH": "/c", "HOME": "/h"})
    assert made["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert (made["LD_LIBRARY_PATH"], made["HOME"]) == ("/a:/b:/c", "/h")
    assert server_environment(install, {})["LD_LIBRARY_PATH"] == "/a:/b"


def test_the_small_model_processes_start_without_torch() -> None:
    modules = (
        "legokv.serving.generate",
        "legokv.serving.documents",
        "legokv.serving.messages",
        "legokv.serving.settings",
    )
    program = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.strip() == "[]", shown.stderr


HEAVY = ("torch", "transformers")


def test_the_client_scripts_import_nothing_of_the_package() -> None:
    client = CLIENT
    scripts = list(client.glob("*.py"))
    assert len(scripts) >= 3
    for script in scripts:
        assert not re.search(r"^\s*(import|from) legokv", script.read_text(), re.MULTILINE)


def test_pinning_and_unpinning_at_once_is_refused() -> None:
    script = CLIENT / "documents.py"
    command = [sys.executable, script, "update", "a-document", "--pin", "--unpin"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "--unpin: not allowed with argument --pin" in ended.stderr
