"""Settings come from file, environment and flags, later ones winning, and nothing is ignored."""

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest

from legokv.built.settings import AttentionName
from legokv.errors import InvalidRequest, ServerError
from legokv.serving.settings import Settings
from legokv.serving.settings_sources import settings_from
from legokv.serving.triton.processes import with_ports


def toml(folder: Path, text: str) -> Path:
    file = folder / "legokv.toml"
    file.write_text(text)
    return file


def test_the_environment_wins_over_the_file_and_a_flag_over_both(tmp_path: Path) -> None:
    file = toml(tmp_path, 'engine = "/e"\nhttp_port = 1001\ngrpc_port = 1002\nmetrics_port = 1003')
    environment = {"LEGOKV_GRPC_PORT": "2002", "LEGOKV_METRICS_PORT": "2003", "HOME": "/root"}
    settings = settings_from(file, environment, {"metrics_port": "3003"})
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (1001, 2002, 3003)
    assert settings.engine == Path("/e")


def test_the_model_processes_read_back_the_same_settings() -> None:
    settings = settings_from(None, {}, {"engine": "out/e", "pool_tokens": "512", "host": "::1"})
    assert settings_from(None, settings.environment(), {}) == settings


def test_a_relative_path_is_made_absolute_since_the_models_run_elsewhere() -> None:
    assert settings_from(None, {}, {"engine": "out/e"}).engine == Path.cwd() / "out/e"


def test_a_port_may_be_chosen_for_the_caller_and_is_free_and_another_each() -> None:
    flags = {
        "engine": "/e",
        "http_port": "auto",
        "grpc_port": "auto",
        "metrics_port": 0,
        "api_port": 0,
    }
    chosen = with_ports(settings_from(None, {}, flags))
    ports = {chosen.http_port, chosen.grpc_port, chosen.metrics_port, chosen.api_port}
    assert len(ports) == 4
    assert 0 not in ports
    assert with_ports(chosen) == chosen


def test_one_port_for_two_uses_is_refused_by_name() -> None:
    free = with_ports(
        settings_from(None, {}, {"engine": "/e", **dict.fromkeys(PORTS, "auto")})
    ).http_port
    flags = {
        "engine": "/e",
        "api": "off",
        "metrics_port": "auto",
        "http_port": free,
        "grpc_port": free,
    }
    with pytest.raises(ServerError, match=f"grpc_port {free} on 127.0.0.1 cannot be used"):
        with_ports(settings_from(None, {}, flags))


@pytest.mark.parametrize(
    ("file", "environment", "flags", "message"),
    [
        ('pool = 3\nengine = "/e"', {}, {}, "unknown setting 'pool' in .*legokv.toml; known are"),
        ("", {"LEGOKV_POOL": "3"}, {}, "unknown setting 'pool' in the environment"),
        ("", {"LEGOKV_POOL_TOKENS": "many"}, {}, "pool_tokens in the environment is no whole num"),
        ("pool_tokens = 1.5", {}, {}, "pool_tokens in .* is no whole number: 1.5"),
        ("pool_tokens = true", {}, {}, "pool_tokens in .* is no whole number: True"),
        ("host = 7", {}, {}, "host in .* is no text: 7"),
        ("pool_tokens = = 3", {}, {}, "is not TOML"),
        ("", {}, {"engine": "/e", "http_port": "70000"}, "http_port is at most 65535, not 70000"),
        ("", {}, {"engine": "/e", "pool_tokens": "0"}, "pool_tokens is 1 or more, not 0"),
        ("", {}, {"engine": "/e", "high_watermark_percent": "101"}, "is at most 100, not 101"),
        (
            "high_watermark_percent = 80",
            {},
            {"engine": "/e"},
            "low_watermark_percent 90 is above high_watermark_percent 80",
        ),
        ("", {}, {}, "no engine folder given"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, file: str, environment: dict[str, str], flags: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        settings_from(toml(tmp_path, file), environment, flags)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere.toml: No such file"):
        settings_from(tmp_path / "nowhere.toml", {}, {})


def test_chunks_are_never_longer_than_the_pool() -> None:
    settings = Settings(engine=Path("/e"), pool_tokens=256)
    assert settings.document_limits.max_chunk_tokens == 256
    assert asdict(settings)["max_chunk_tokens"] == 1024


PORTS = ("http_port", "grpc_port", "metrics_port", "api_port")


SECRET = "redis://fleet:pa55word@cache.example:6380/2?password=pa55word"


def test_a_redis_password_reaches_the_model_processes_and_is_printed_nowhere() -> None:
    settings = settings_from(None, {"LEGOKV_REDIS_URL": SECRET}, {"engine": "/e"})
    assert settings_from(None, settings.environment(), {}).redis_url == SECRET
    assert settings.shown()["redis_url"] == "redis://cache.example:6380/2"
    assert "pa55word" not in repr(settings) + str(settings.shown())


@pytest.mark.parametrize(
    "url", ["pa55word", "http://pa55word@host", "redis://", "redis://:pa55word@host:port/0"]
)
def test_what_is_no_redis_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(InvalidRequest, match="redis_url is redis://HOST:PORT/NUMBER") as refused:
        settings_from(None, {"LEGOKV_REDIS_URL": url}, {"engine": "/e"})
    assert "pa55word" not in str(refused.value)


def test_every_setting_is_shown() -> None:
    settings = settings_from(None, {}, {"engine": "/e"})
    assert settings.shown().keys() == asdict(settings).keys()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("kv_stored_dtype", ("model", "int8")),
        ("runner", ("auto", "torch", "cuda", "plan")),
        ("attention", get_args(AttentionName)),
        ("dtype", ("auto", "bfloat16", "float16", "float32")),
    ],
)
def test_a_choice_that_the_engine_does_not_have_is_refused_before_anything_starts(
    name: str, known: tuple[str, ...]
) -> None:
    for value in known:
        settings = settings_from(None, {}, {"engine": "engine", name: value})
        assert getattr(settings, name) == value
    with pytest.raises(InvalidRequest, match=f"{name} is one of {', '.join(known)}, not 'int4'"):
        settings_from(None, {}, {"engine": "engine", name: "int4"})


@pytest.mark.parametrize(
    "variables",
    [
        {
            "LEGOKV_SERVICE_HOST": "10.0.0.11",
            "LEGOKV_SERVICE_PORT": "8000",
            "LEGOKV_SERVICE_PORT_HTTP": "8000",
            "LEGOKV_SERVICE_PORT_HTTP_METRICS": "8002",
            "LEGOKV_PORT": "tcp://10.0.0.11:8000",
            "LEGOKV_PORT_8000_TCP": "tcp://10.0.0.11:8000",
            "LEGOKV_PORT_8000_TCP_PROTO": "tcp",
            "LEGOKV_PORT_8000_TCP_PORT": "8000",
            "LEGOKV_PORT_8000_TCP_ADDR": "10.0.0.11",
            "LEGOKV_PORT_53_UDP": "udp://[fd00::11]:53",
        },
        {
            "LEGOKV_HTTP_PORT": "tcp://10.0.0.11:8000",
            "LEGOKV_GRPC_PORT": "tcp://10.0.0.12:8001",
            "LEGOKV_METRICS_PORT": "tcp://[fd00::11]:8002",
            "LEGOKV_HTTP_PORT_8000_TCP_ADDR": "10.0.0.11",
            "LEGOKV_METRICS_SERVICE_HOST": "10.0.0.13",
            "LEGOKV_ENGINE_SERVICE_PORT": "8000",
            "LEGOKV_REDIS_MASTER_SERVICE_PORT_TCP_REDIS": "6379",
            "LEGOKV_REDIS_MASTER_PORT": "tcp://10.0.0.14:6379",
        },
        {
            "LEGOKV_NAME": "/web/legokv",
            "LEGOKV_ENV_LEGOKV_ENGINE": "/engine",
            "LEGOKV_PORT_8000_TCP_START": "tcp://172.17.0.2:8000",
            "LEGOKV_PORT_8000_TCP_END": "tcp://172.17.0.2:8002",
        },
    ],
)
def test_what_a_cluster_says_of_a_service_of_our_name_is_no_setting(
    variables: dict[str, str],
) -> None:
    alone = settings_from(None, {"LEGOKV_ENGINE": "/e"}, {})
    assert settings_from(None, {"LEGOKV_ENGINE": "/e", **variables}, {}) == alone


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "8000"), ("HTTPS_PORT", "8000"), ("HOSTS", "10.0.0.11"), ("SERVICE", "a")],
)
def test_a_misspelt_variable_is_still_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"unknown setting '{name.lower()}' in the environm"):
        settings_from(None, {"LEGOKV_ENGINE": "/e", f"LEGOKV_{name}": value}, {})


def test_a_port_that_is_no_number_is_refused_in_the_environment_too() -> None:
    with pytest.raises(InvalidRequest, match="http_port in the environment is no whole number"):
        settings_from(None, {"LEGOKV_ENGINE": "/e", "LEGOKV_HTTP_PORT": "http"}, {})
