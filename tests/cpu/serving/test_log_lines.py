"""Equal lines of Triton's log are told once and then counted; requests' lines never are."""

from legokv.serving.triton.log_lines import SHOWN_SECONDS, CollapsedLog, OwnLines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_million_equal_lines_are_a_few() -> None:
    clock = Clock()
    log = CollapsedLog(clock)
    lines = []
    for number in range(100_000):
        clock.now = number / 10_000
        lines += log.shown("[warn] Error from accept() call: Too many open files")
        lines += log.shown(f"E1129 14:38:06.2{number:05} 937 server.cc:241] cannot take {number}")
    clock.now += SHOWN_SECONDS
    lines += log.shown("[warn] Error from accept() call: Too many open files")
    assert len(lines) == 3
    assert lines[2].endswith("Too many open files (and 99999 more like it in 20 s)")


def test_other_lines_and_those_of_requests_are_all_shown() -> None:
    log = CollapsedLog(Clock())
    lines = ["one line", "another", *['{"request_id": "a"}'] * 5]
    assert [text for line in lines for text in log.shown(line)] == lines


def test_what_is_no_news_is_not_shown() -> None:
    log = CollapsedLog(Clock())
    assert (
        list(log.shown("[WARN]  evhtp.c:4050 NODELAY NOT SUPPORTED")) == list(log.shown("")) == []
    )


def test_tritons_own_lines_are_known_with_what_follows_them() -> None:
    own = OwnLines()
    lines = {
        "2026-11-29 18:00:00,123 engine INFO legokv.built.seal: digested the weights": False,
        "E1129 14:38:06.201234 937 model_lifecycle.cc:642] failed to load 'engine'": True,
        "At:": True,
        "  /models/engine/1/model.py(24): initialize": True,
        '{"time": "2026-11-29", "model": "generate"}': False,
        "a library's word": False,
        "error: creating server: Internal - failed to load all models": True,
    }
    assert {line: own.is_tritons(line) for line in lines} == lines
