"""The settings an engine is opened with: one record, keyword arguments, or a server's."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from legokv import Engine
from legokv.engine.settings import DTYPES, EngineChoices, EngineSettings
from legokv.errors import InvalidRequest
from legokv.serving.settings import Settings


def test_the_keyword_arguments_are_the_record_s_fields():
    assert get_type_hints(EngineChoices) == get_type_hints(EngineSettings)


def test_an_unknown_keyword_argument_is_refused_by_name(tiny_engine_folder):
    with pytest.raises(TypeError, match="pool_token"):
        Engine.open(tiny_engine_folder(), pool_token=64)


def test_the_record_opens_the_engine_that_the_keyword_arguments_do(tiny_engine_folder):
    chosen = {"pool_tokens": 96, "max_step_tokens": 7, "host_bytes": 0, "dtype": "float32"}
    folder = tiny_engine_folder()
    for engine in (
        Engine.open(folder, **chosen),
        Engine.open_with(folder, EngineSettings(**chosen)),
    ):
        assert engine.cache.pool.num_pages * engine.facts.page_size == 96
        assert engine.tiers.tiers == ()
        assert engine.facts.dtype == "float32"


def test_each_setting_of_a_server_s_engine_reaches_it():
    changed = {
        "dtype": "float32",
        "runner": "torch",
        "attention": "torch",
        "num_threads": 3,
        "pool_tokens": 4096,
        "max_step_tokens": 5,
        "max_queue_requests": 6,
        "cache_dir": Path("/c"),
        "host_bytes": 7,
        "disk_bytes": 8,
        "namespace_bytes": 9,
        "kv_stored_dtype": "int8",
        "redis_url": "redis://h:1/0",
        "remote_bytes": 10,
    }
    marks = {"high_watermark_percent": 80, "low_watermark_percent": 70}
    settings = Settings(engine=Path("/e"), **changed, **marks).engine_settings
    assert settings == EngineSettings(**changed, high_watermark=0.8, low_watermark=0.7)
    untouched = vars(EngineSettings())
    assert not [name for name, value in vars(settings).items() if value == untouched[name]]


def test_a_server_that_is_told_nothing_has_the_library_s_settings_but_for_queue_and_cache():
    served, opened = Settings(engine=Path("/e")).engine_settings, EngineSettings()
    differ = {f.name for f in fields(opened) if getattr(served, f.name) != getattr(opened, f.name)}
    assert differ == {"max_queue_requests", "cache_dir"}


def test_an_unknown_dtype_is_refused_with_those_there_are():
    with pytest.raises(InvalidRequest, match=f"dtype is one of {', '.join(DTYPES)}, not 'int4'"):
        EngineSettings(dtype="int4")
