"""The settings an engine is opened with: one record, which a server's extends."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from legokv import Engine, EngineSettings
from legokv.built.settings import described
from legokv.errors import InvalidRequest
from legokv.model.dtypes import DTYPES
from legokv.serving.settings import Settings


def test_the_record_opens_the_engine_that_it_says(tiny_engine_folder):
    settings = EngineSettings(
        pool_tokens=96, max_step_tokens=7, max_queue_requests=3, host_bytes=0, dtype="bfloat16"
    )
    engine = Engine.open(tiny_engine_folder(), settings=settings)
    assert engine.cache.pool.num_pages * engine.facts.page_size == 96
    assert engine.tiers.tiers == ()
    assert engine.facts.dtype == "bfloat16"


def test_a_setting_is_no_argument_of_its_own(tiny_engine_folder):
    with pytest.raises(TypeError, match="pool_tokens"):
        Engine.open(tiny_engine_folder(), pool_tokens=64)


def test_an_engine_takes_a_server_s_record_as_its_own(tiny_engine_folder, tmp_path):
    settings = Settings(
        engine=tiny_engine_folder(), cache_dir=tmp_path, pool_tokens=64, host_bytes=0
    )
    engine = Engine.open(settings.engine, settings=settings)
    assert engine.cache.pool.num_pages == 4
    assert [tier.name for tier in engine.tiers.tiers] == ["disk"]


def test_a_server_that_is_told_nothing_has_the_library_s_settings_but_for_three():
    served, opened = Settings(engine=Path("/e")), EngineSettings()
    differ = {f.name for f in fields(opened) if getattr(served, f.name) != getattr(opened, f.name)}
    assert differ == {"max_queue_requests", "cache_dir", "kept_tokens"}


def test_a_setting_means_the_same_to_a_server_and_has_the_same_bounds():
    served = {item.name: item for item in fields(Settings)}
    for item in fields(EngineSettings):
        assert served[item.name].metadata == item.metadata, item.name


def test_an_unknown_dtype_is_refused_with_those_there_are():
    known = ", ".join(("auto", *DTYPES))
    with pytest.raises(InvalidRequest, match=f"dtype is one of {known}, not 'int4'"):
        EngineSettings(dtype="int4")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pool_tokens": 0}, "pool_tokens is 1 or more, not 0"),
        ({"host_bytes": -1}, "host_bytes is 0 or more, not -1"),
        ({"high_watermark_percent": 101}, "high_watermark_percent is at most 100, not 101"),
        ({"high_watermark_percent": 80}, "percent 90 is above high_watermark_percent 80"),
        ({"pool_tokens": "4096"}, "pool_tokens is a whole number, not a text '4096'"),
        ({"num_threads": 1.5}, "num_threads is a whole number, not a fraction 1.5"),
        (
            {"attention": "gpu"},
            "attention is one of auto, native, torch, .*amx, not 'gpu'",
        ),
        ({"redis_url": "cache:6379"}, "redis_url is redis://HOST:PORT/NUMBER"),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_before_anything_is_opened(wrong, message):
    with pytest.raises(InvalidRequest, match=message):
        replace(EngineSettings(), **wrong)


def test_a_pool_of_less_than_a_page_is_refused_with_the_page(tiny_engine_folder):
    settings = EngineSettings(pool_tokens=15)
    with pytest.raises(InvalidRequest, match="pool_tokens is at least one page of 16, not 15"):
        Engine.open(tiny_engine_folder(), settings=settings)


def test_the_record_s_help_has_each_setting_with_its_default_and_meaning():
    lines = EngineSettings.__doc__.splitlines()
    for item in fields(EngineSettings):
        assert f"    {item.name} ({item.default!r}): {described(item)}" in lines
