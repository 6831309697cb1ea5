"""A server is ready when its engine is loaded and was found to link correctly, and never else."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

from ports import free_port
from server import RunningServer, command

from legokv.built.folder import read_engine_folder

START_SECONDS = 120


def health(url: str, question: str) -> int | None:
    """The status of a health question; None where nobody listens."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/{question}", timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_a_server_over_an_engine_that_passed_is_ready(
    server: RunningServer, engine_folder: Path
) -> None:
    gate = read_engine_folder(engine_folder).gate
    assert gate is not None
    assert gate.passed
    assert (health(server.http, "live"), health(server.http, "ready")) == (HTTPStatus.OK,) * 2


def test_a_server_over_an_engine_that_failed_is_never_ready_and_says_the_numbers(
    engine_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(engine_folder, tmp_path / "failed"))
    facts = json.loads((folder / "engine.json").read_text())
    facts["gate"]["recomputed_difference"] = 1.75
    (folder / "engine.json").write_text(json.dumps(facts))
    port = free_port()
    given = command(folder, tmp_path / "cache", http_port=port)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=log)
        answers = set()
        deadline = time.monotonic() + START_SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                answers.add(health(f"http://127.0.0.1:{port}", "ready"))
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait()
    said = (tmp_path / "log").read_text()
    assert HTTPStatus.OK not in answers
    assert process.returncode == 1, said
    assert "failed the check of linked against full logits and is not served" in said
    assert "recomputed logits differ by 1.75" in said
