"""Small engines over their tiers, and what the tests of tiers ask of them."""

import pytest

from legokv import Engine, EngineSettings


@pytest.fixture(name="open_engine")
def open_engine_fixture(tiny_engine_folder, tmp_path):
    def opened(pool_tokens=1024, **settings):
        settings.setdefault("cache_dir", tmp_path)
        return Engine.open(
            tiny_engine_folder(),
            settings=EngineSettings(pool_tokens=pool_tokens, attention="torch", **settings),
        )

    return opened


def tier(engine, name):
    return {stats.tier: stats for stats in engine.cache_stats()}[name]


def answer(engine, chunks):
    return engine.prefill([*chunks, [5, 6]])


def files(tmp_path):
    return sorted(tmp_path.rglob("*.safetensors"))
