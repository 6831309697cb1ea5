"""The server's questions to itself are answered without computing, counting or a line."""

import logging
import threading
from typing import cast

import pytest

from legokv import Engine
from legokv.errors import DeviceLost, EngineGone, LegokvError, StepFailed
from legokv.serving import engine_service
from legokv.serving.documents import DocumentService, document_replies
from legokv.serving.engine_service import EngineService
from legokv.serving.log import PROBE_VARIABLE, RequestLine, is_probe
from legokv.serving.messages import Done, Probe

PROBE_ID = "a5" * 24


class SteppingEngine:
    """An engine whose step lasts until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.lost: LegokvError | None = None
        self.tiers = type("Tiers", (), {"flush": lambda *_: None})()
        self.runner = type("Runner", (), {"device": type("Device", (), {"type": "none"})})()

    def step(self) -> bool:
        self.begun.set()
        self.end.wait(60)
        return False


def test_a_probe_is_answered_while_a_step_lasts_and_not_when_it_has_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = SteppingEngine()
    service = EngineService(cast(Engine, engine))
    assert engine.begun.wait(10)
    assert service.events(Probe()) == [Done()]
    monkeypatch.setattr(engine_service, "MAX_STEP_SECONDS", 0.0)
    with pytest.raises(StepFailed, match="one step has lasted longer than 0 s"):
        service.events(Probe())
    engine.end.set()
    service.close()
    with pytest.raises(StepFailed, match="the thread that computes has ended"):
        service.events(Probe())


def test_an_engine_without_its_device_ends_and_says_why_to_whoever_asks() -> None:
    engine = SteppingEngine()
    service = EngineService(cast(Engine, engine))
    assert engine.begun.wait(10)
    engine.lost = DeviceLost("the GPU computes nothing more: an illegal memory access")
    engine.end.set()
    service._scheduler.join(10)
    assert not service._scheduler.is_alive()
    with pytest.raises(DeviceLost, match="an illegal memory access"):
        service.events(Probe())
    assert isinstance(service._ended, EngineGone)
    assert "an illegal memory access" in str(service._ended)
    service.close()


def test_only_the_server_s_own_id_is_a_probe_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_probe("")
    monkeypatch.setenv(PROBE_VARIABLE, PROBE_ID)
    assert is_probe(PROBE_ID)
    for other in ("", "a", PROBE_ID + "a", PROBE_ID[1:], "ä" * 48):
        assert not is_probe(other)


def test_a_probe_of_documents_leaves_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PROBE_VARIABLE, PROBE_ID)
    line = RequestLine("documents", PROBE_ID)
    with caplog.at_level(logging.INFO):
        (reply,) = document_replies(cast(DocumentService, None), {"request": b"{}"}, line)
        line.answered(reply.values)
    assert (reply.final, reply.values) == (True, {"reply": b"{}"})
    assert caplog.records == []
