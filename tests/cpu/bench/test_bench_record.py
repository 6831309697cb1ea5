"""Journals resume, statistics are what they say, unknown peers and methods are refused."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from tiny_gguf import write_block_gguf

from benchmarks.cost.cases import method
from benchmarks.peers.engines import Engine, engine
from benchmarks.peers.measure import Plan, run, turn
from benchmarks.peers.same_gguf import token_times, write_q8_0
from benchmarks.peers.tasks import MANY_ASKERS, TASKS, context_tokens, prompts, task
from benchmarks.record import about as about_module
from benchmarks.record import ending
from benchmarks.record import journal as journal_module
from benchmarks.record.clock import TimeLimit
from benchmarks.record.journal import Journal, open_journal
from benchmarks.record.names import UnknownName
from benchmarks.record.results import read_results, write_results
from benchmarks.record.statistics import bootstrap_interval, median_ratio, percentile, spread


def test_percentiles_interpolate_between_neighbours():
    values = [40.0, 10.0, 20.0, 30.0]
    assert [percentile(values, p) for p in (0, 50, 90, 100)] == pytest.approx([10, 25, 37, 40])
    with pytest.raises(ValueError, match="percentile 50 of 0 values"):
        percentile([], 50)


def test_a_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 9.0]).as_row() == {"median": 3, "low": 1, "high": 9, "count": 3}
    with pytest.raises(ValueError, match="0 values have no median"):
        spread([])


def test_a_bootstrap_of_pairs_keeps_them_together_and_repeats():
    pairs = [(2.0 * n, 1.0 * n) for n in range(1, 20)]
    assert median_ratio(pairs) == 2.0
    low, high = bootstrap_interval(pairs, median_ratio)
    assert (low, high) == pytest.approx((2.0, 2.0))
    mean = bootstrap_interval([0.0, 1.0] * 50, lambda v: sum(v) / len(v))
    assert mean == bootstrap_interval([0.0, 1.0] * 50, lambda v: sum(v) / len(v))
    assert mean == pytest.approx((0.4, 0.6), abs=0.03)


def test_an_interrupted_run_goes_on_and_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / "a.jsonl"
    Journal(path, {"commit": "a"}).add("one", 1)
    with path.open("a") as file:
        file.write('["two", 2')
    resumed = Journal(path, {"commit": "a"})
    assert resumed.entries() == {"one": 1}
    resumed.add("two", 2)
    assert Journal(path, {"commit": "a"}).entries() == {"one": 1, "two": 2}


def test_a_journal_of_another_commit_is_begun_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    Journal(path, {"commit": "a"}).add("one", 1)
    assert len(Journal(path, {"commit": "b"})) == 0


def test_results_are_read_as_written_and_missing_ones_are_none(tmp_path):
    write_results("cost", {"commit": "a"}, [{"x": 1}], tmp_path)
    assert read_results("cost", tmp_path) == {"about": {"commit": "a"}, "rows": [{"x": 1}]}
    assert read_results("peers", tmp_path) is None
    assert [file.name for file in tmp_path.iterdir()] == ["cost.json"]


def test_an_unknown_method_or_peer_is_a_clear_error():
    with pytest.raises(UnknownName, match="unknown method 'legolink-x'; known are full"):
        method("legolink-x")
    with pytest.raises(UnknownName, match="unknown peer 'sglang'; known are legokv, vllm"):
        engine("sglang", 2)


def test_a_peer_that_is_not_installed_is_skipped_with_a_line_and_no_number(tmp_path, capsys):
    absent = Engine("vllm", tmp_path / "python", "vllm")
    plan = Plan(TASKS, 1, 16, TimeLimit(1), {})
    journal = Journal(tmp_path / "peers.jsonl", {})
    reasons = run([absent], plan, journal)
    assert "vllm is not installed: run `make peers`" in reasons["vllm"]
    assert "skipped: vllm is not installed" in capsys.readouterr().out
    assert len(journal) == 0


def test_all_peers_get_the_same_prompts_and_each_round_new_documents():
    full, reordered = task("full prefill"), task("documents reordered")
    first = prompts(full, 0, 16)[0]["documents"]
    assert first == prompts(task("whole prefix cached"), 0, 16)[0]["documents"]
    assert prompts(reordered, 0, 16)[0]["documents"] == first[::-1]
    assert first != prompts(full, 1, 16)[0]["documents"]
    assert len({json.dumps(p) for p in prompts(task("decode, eight sequences"), 0, 16)}) == 8


def test_many_askers_have_the_same_documents_in_one_order_or_each_in_its_own():
    same, shuffled = (
        [prompt["documents"] for prompt in prompts(each, 0, 16)] for each in MANY_ASKERS
    )
    assert len(same) == len(shuffled) == 32
    assert all(documents == same[0] for documents in same)
    assert all(sorted(documents) == sorted(same[0]) for documents in shuffled)
    orders = {json.dumps(documents) for documents in shuffled}
    assert len(orders) == 32
    assert shuffled == [prompt["documents"] for prompt in prompts(MANY_ASKERS[1], 0, 16)]
    # Whoever keeps prefixes would find no more than the first document of most.
    assert len({json.dumps(documents[:3]) for documents in shuffled}) > 24
    questions = {json.dumps(p["question"]) for each in MANY_ASKERS for p in prompts(each, 0, 16)}
    assert len(questions) == 64


def test_every_peer_has_room_for_the_longest_question_and_all_of_its_answer():
    for asked in ((*TASKS,), MANY_ASKERS, TASKS[:1]):
        longest = max(
            sum(map(len, p["documents"])) + len(p["question"]) + max(a.answer_tokens, 33 * a.decode)
            for a in asked
            for p in prompts(a, 0, 16)
        )
        assert context_tokens(asked, 16) == longest


def test_many_askers_are_timed_to_their_last_token_after_one_that_is_not_timed():
    asked = []

    class Recorder:
        engine = Engine("vllm", Path(sys.executable), "vllm")

        def wake(self):
            pass

        def stop(self):
            pass

        def seconds(self, prompts, num_tokens, reuse):
            asked.append((len(prompts), num_tokens))
            return float(len(asked))

    class Kept(dict):
        add = dict.__setitem__

    journal = Kept()
    turn(Recorder(), Plan((*TASKS[2:3], *MANY_ASKERS), 1, 16, TimeLimit(1), {}), journal, 0)
    assert asked == [(1, 1), (32, 97), (1, 1), (32, 97)]
    assert journal == {
        "32 askers, one order/vllm/0": 2.0,
        "32 askers, shuffled orders/vllm/0": 4.0,
    }
    assert not MANY_ASKERS[0].is_for("llama_cpp")


def test_a_decoded_token_s_times_are_those_of_an_answer_less_its_first_token_s():
    class Clock:
        def wake(self):
            pass

        def stop(self):
            pass

        def times(self, prompts, num_tokens, reuse):
            return 5.0 + 2 * num_tokens, 7.0 + 3 * num_tokens

    assert token_times(Clock(), 0, 64) == (2.0, 3.0)


def test_the_file_for_both_peers_has_the_other_s_matrices_in_q8_0_and_its_fields(
    tmp_path, tiny_checkpoint
):
    source = write_block_gguf(tmp_path / "a.gguf", tiny_checkpoint("llama"), "Q4_0")
    write_q8_0(source, tmp_path / "b.gguf")
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "b.gguf")
    assert {name: field.contents() for name, field in before.fields.items()} == {
        name: field.contents() for name, field in after.fields.items()
    }
    kinds = {tensor.name: tensor.tensor_type for tensor in after.tensors}
    matrices = {tensor.name for tensor in before.tensors if len(tensor.shape) == 2}
    assert kinds.keys() == {tensor.name for tensor in before.tensors}
    assert {name for name, kind in kinds.items() if kind.name == "Q8_0"} == matrices


def test_a_journal_outlives_a_commit_that_changes_nothing_measured(tmp_path, monkeypatch):
    changed = {"abc": False, "def": True}
    monkeypatch.setattr(journal_module, "measured_since", lambda commit: changed.get(commit))
    monkeypatch.setattr(journal_module, "commit", lambda: "abc")
    monkeypatch.setattr(journal_module, "uncommitted", lambda: "")
    open_journal("cost", {"threads": 2}, tmp_path).add("one", 1)
    monkeypatch.setattr(journal_module, "commit", lambda: "later")
    assert open_journal("cost", {"threads": 2}, tmp_path).entries() == {"one": 1}
    assert open_journal("cost", {"threads": 1}, tmp_path).entries() == {}
    settings = {"commit": "def", "uncommitted": "", "threads": 1}
    Journal(tmp_path / "cost.jsonl", settings).add("one", 1)
    assert open_journal("cost", {"threads": 1}, tmp_path).entries() == {}


def test_numbers_of_uncommitted_code_are_kept_for_that_code_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "measured_since", lambda commit: False)
    state = {"commit": "abc", "uncommitted": ""}
    monkeypatch.setattr(journal_module, "commit", lambda: state["commit"])
    monkeypatch.setattr(journal_module, "uncommitted", lambda: state["uncommitted"])
    open_journal("cost", {}, tmp_path).add("one", 1)
    state |= {"commit": "abc-dirty", "uncommitted": "1"}
    assert open_journal("cost", {}, tmp_path).entries() == {}
    open_journal("cost", {}, tmp_path).add("two", 2)
    assert open_journal("cost", {}, tmp_path).entries() == {"two": 2}
    state["uncommitted"] = "2"
    assert open_journal("cost", {}, tmp_path).entries() == {}


def test_a_benchmark_ends_with_a_line_for_what_its_caller_can_put_right(capsys):
    def unknown() -> int:
        raise UnknownName("unknown task 'x'; known are a, b")

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert (ending.run(unknown), ending.run(interrupted), ending.run(lambda: 0)) == (2, 130, 0)
    said = capsys.readouterr()
    assert said.err == "unknown task 'x'; known are a, b\n"
    assert "the same command goes on" in said.out


def test_results_that_a_run_writes_do_not_make_its_commit_dirty(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *name, "-C", str(tmp_path), *words], check=True, capture_output=True)

    results, source = tmp_path / "benchmarks" / "results" / "cost.json", tmp_path / "src" / "a.py"
    for file in (results, source):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(about_module, "ROOT", tmp_path)
    first = about_module.commit()
    results.write_text("2")
    assert about_module.commit() == first
    assert about_module.uncommitted() == ""
    source.write_text("2")
    assert about_module.commit() == f"{first}-dirty"
    assert about_module.uncommitted() != ""
    assert about_module.measured_since(first) is False
    git("commit", "-am", "second")
    assert about_module.measured_since(first) is True
