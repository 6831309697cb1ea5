"""What others reach is said at start, and Triton's own ports are open only when asked for."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from legokv.errors import InvalidRequest
from legokv.serving.front.exposure import exposed
from legokv.serving.settings import Settings
from legokv.serving.settings_sources import add_flags, flags_in, settings_from
from legokv.serving.triton.server import Place, command_line


def settings(*flags: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return settings_from(None, {}, flags_in(parser.parse_args(["--engine", "/e", *flags])))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_server_of_this_machine_alone_has_nothing_to_say(host: str) -> None:
    assert list(exposed(settings("--host", host))) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "kv.example"])
def test_another_host_names_the_ports_and_what_they_give(host: str) -> None:
    (line,) = exposed(settings("--host", host, "--http-port", "1001"))
    assert line.startswith(
        f"warning: --host {host}: whoever reaches ports 8080 (API), 1001 (HTTP), 8001 (gRPC)"
    )
    assert "no keys and no TLS" in line


def test_with_keys_triton_s_ports_stay_on_this_machine_and_the_api_s_lacks_tls() -> None:
    keyed = settings("--host", "0.0.0.0", "--api-keys", "/k")
    (line,) = exposed(keyed)
    assert "there is no TLS at port 8080: keys, documents and answers" in line
    assert "and 8002 (metrics) ask for no key, and listen at 127.0.0.1 alone" in line
    assert (keyed.triton_host, settings("--host", "::1").triton_host) == ("127.0.0.1", "::1")
    assert list(exposed(settings("--api-keys", "/k"))) == []


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--api-keys", "/k", "--api", "off"), "api_keys are the gateway's, and api is off"),
        (("--api-keys", "/k", "--expose-triton"), "Triton itself asks for no key"),
        (("--api-origins", "chat.example"), "api_origins has 'chat.example', which is no site"),
        (("--api-origins", "https://a.example,https://b.example/x"), "has 'https://b.example/x'"),
        (("--api-origins", "https://me@a.example"), "which is no site like https://chat"),
    ],
)
def test_what_would_leave_a_door_open_is_refused(flags: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        settings(*flags)


def test_origins_are_taken_as_browsers_write_them() -> None:
    both = settings("--api-origins", "https://Chat.Example:8443/, http://localhost:3000")
    assert both.origins == ("https://chat.example:8443", "http://localhost:3000")
    assert settings("--api-origins", "*").origins == ("*",)
    assert settings().origins == ()


def test_an_open_triton_is_told_also_on_this_machine_and_needs_no_value() -> None:
    (line,) = exposed(settings("--expose-triton"))
    assert "every program of this machine speaks to Triton itself" in line
    assert len(list(exposed(settings("--expose-triton", "on", "--host", "0.0.0.0")))) == 2


def options(place: Place, *flags: str) -> dict[str, Any]:
    words = command_line(settings(*flags), place)
    return dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)


def test_triton_listens_on_sockets_unless_it_is_exposed(tmp_path: Path) -> None:
    (tmp_path / "http").write_text("left by a server that was killed")
    (tmp_path / "grpc:8001").write_text("the same")
    inside = options(Place(tmp_path))
    assert inside["http-address"] == f"unix:{tmp_path}/http"
    assert inside["grpc-address"] == f"unix:{tmp_path}/grpc"
    assert inside["metrics-address"] == f"unix:{tmp_path}/metrics"
    assert list(tmp_path.iterdir()) == []
    outside = options(Place(None), "--host", "192.0.2.1")
    assert outside["http-address"] == outside["grpc-address"] == "192.0.2.1"
    assert (outside["http-port"], outside["grpc-port"]) == ("8000", "8001")


def test_what_nobody_needs_is_closed_either_way_by_what_no_header_can_carry(tmp_path: Path) -> None:
    values = set()
    for place in (Place(tmp_path), Place(None), Place(None)):
        given = options(place)
        for name in ("http-restricted-api", "grpc-restricted-protocol"):
            kinds, _, value = given[name].partition(":")
            assert kinds == "shared-memory,model-repository,statistics,trace,logging"
            assert value.endswith("\n")
            assert len(value) > 64
            values.add(value)
    assert len(values) == 3
