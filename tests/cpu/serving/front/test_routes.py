"""What clients need of Triton is passed on, what they could harm with is closed, by its name."""

import pytest

from legokv.errors import PathClosed
from legokv.serving.front.routes import Kind, kind_of


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v2/models/generate/generate", Kind.GENERATE),
        ("POST", "/v2/models/generate/generate_stream", Kind.GENERATE),
        ("POST", "/v2/models/generate/versions/1/generate", Kind.GENERATE),
        ("POST", "/v2/models/documents/versions/1/infer", Kind.INFER),
        ("GET", "/v2/health/live", Kind.LIVE),
        ("GET", "/v2/health/ready", Kind.READY),
        ("GET", "/v2/models/generate/ready", Kind.READY),
        ("GET", "/v2", Kind.PASS),
        ("GET", "/v2/models/documents", Kind.PASS),
        ("GET", "/v2/models/generate/config", Kind.PASS),
    ],
)
def test_what_clients_need_is_passed_on(method: str, path: str, kind: Kind) -> None:
    assert kind_of(method, path) is kind


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v2/systemsharedmemory/region/evil/register", 403, "shared memory"),
        ("GET", "/v2/systemsharedmemory/status", 403, "shared memory"),
        ("POST", "/v2/cudasharedmemory/region/evil/register", 403, "shared memory"),
        ("POST", "/v2/repository/models/generate/load", 403, "control of models"),
        ("POST", "/v2/repository/index", 403, "control of models"),
        ("POST", "/v2/logging", 403, "logging"),
        ("GET", "/v2/trace/setting", 403, "tracing"),
        ("POST", "/v2/models/generate/trace/setting", 403, "tracing"),
        ("GET", "/v2/models/stats", 403, "statistics"),
        ("GET", "/v2/models/generate/versions/1/stats", 403, "statistics"),
        ("POST", "/v2/models/engine/infer", 403, "engine"),
        (
            "POST",
            "/v2/models/generate/infer",
            400,
            "POST /v2/models/generate/generate for the whole",
        ),
        ("GET", "/v2/models/engine/config", 403, "engine"),
        ("POST", "/v2/models/engine/versions/1/generate", 403, "engine"),
        ("POST", "/v2/models/%65ngine/infer", 404, "nothing at"),
        ("POST", "/v2/models/generate/../engine/infer", 404, "nothing at"),
        ("POST", "//v2/models/generate/generate", 404, "nothing at"),
        ("POST", "/v2/models/documents/generate", 404, "nothing at"),
        ("GET", "/metrics", 404, "nothing at"),
        ("DELETE", "/v2/models/generate/generate", 405, "takes POST, not DELETE"),
        ("POST", "/v2/health/ready", 405, "takes GET, not POST"),
    ],
)
def test_all_else_ends_at_the_front_with_the_reason(
    method: str, path: str, status: int, reason: str
) -> None:
    with pytest.raises(PathClosed, match=reason) as closed:
        kind_of(method, path)
    assert closed.value.status == status
