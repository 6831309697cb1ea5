"""What is kept of a failed build's output."""

from legokv.kernels.toolchain import KEPT_LINES, why_it_failed


def test_the_first_error_is_kept_however_much_comes_after_it() -> None:
    lines = ["[ 10%] Building errors.cpp.o", "a.cu(3): error: no such type", *["note"] * 100]
    assert why_it_failed(lines).splitlines() == lines[1 : 1 + KEPT_LINES]


def test_without_a_word_of_error_the_end_is_kept() -> None:
    lines = [f"line {number}" for number in range(100)]
    assert why_it_failed(lines).splitlines() == lines[-KEPT_LINES:]
    assert why_it_failed(["killed"]) == "killed"
