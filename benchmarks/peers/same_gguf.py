"""python -m benchmarks.peers.same_gguf: a decoded token beside llama.cpp's, both of one Q8_0 file.

Makes that file of the one that `make peers` fetched, and an engine of it with int8 weights, where
they are missing. Both peers decode one sequence in turns, the other stopped, on so many threads.
Milliseconds a token, by the clock and of CPU time, the first token's taken off; medians with
ranges, and llama.cpp's over legokv's, paired by round.
"""

import argparse
import statistics
import sys
from pathlib import Path

import gguf

from benchmarks.peers.engines import PEERS, engine
from benchmarks.peers.install import GGUF
from benchmarks.peers.process import PeerFailed, PeerProcess
from benchmarks.peers.tasks import Task, prompts
from benchmarks.record.about import ROOT, commit, device
from benchmarks.record.ending import WRONG_QUESTION, run
from benchmarks.record.names import UnknownName
from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.checkpoint.source import checkpoint_folder
from legokv.kernels.build_cpu import build_native_library

Q8_0 = PEERS / "SmolLM2-135M-Instruct.Q8_0.gguf"
ENGINE = ROOT / "out" / "engines" / "q8_0"
NAMES = ("legokv", "llama_cpp")
DOCUMENT_TOKENS, CONTEXT_TOKENS = 16, 1024

Times = tuple[float, float]
"""Seconds of CPU time, and by the clock."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a turn")
    return parser.parse_args()


def write_q8_0(source: Path, file: Path) -> None:
    """`source` with its matrices in Q8_0 and the rest in float32."""
    reader, partial = gguf.GGUFReader(source), file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            inner = field.types[-1] if is_array else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    kind = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim == 2:
            blocks = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)


def make_models() -> None:
    """The file and its engine, where they are missing."""
    if not GGUF.is_file():
        raise UnknownName(f"{GGUF} is missing: run `make peers`")
    # Without it the engine would open with torch's attention, and weights as bfloat16.
    build_native_library(print)
    if not Q8_0.is_file():
        write_q8_0(GGUF, Q8_0)
    if not (ENGINE / "engine.json").is_file():
        checkpoint = checkpoint_folder("llama", Q8_0, ROOT / "out" / "checkpoints", print)
        build_engine_folder(checkpoint, ENGINE, BuildSettings("q8_0", weights="int8"))


def token_times(process: PeerProcess, number: int, num_tokens: int) -> Times:
    """Of one decoded token of a round's prompt."""
    asked = prompts(Task("same file"), number, DOCUMENT_TOKENS)
    process.wake()
    # Once before: what a peer keeps of a prompt it has in both turns that are timed.
    process.times(asked, 1, "nothing")
    first = process.times(asked, 1, "nothing")
    whole = process.times(asked, 1 + num_tokens, "nothing")
    process.stop()
    cpu, clock = ((more - less) / num_tokens for more, less in zip(whole, first, strict=True))
    return cpu, clock


def described(name: str, seconds: list[float], unit: float, word: str) -> str:
    least, middle, most = (
        each * unit for each in (min(seconds), statistics.median(seconds), max(seconds))
    )
    return f"{name}: {middle:.2f} ({least:.2f} to {most:.2f}) {word}"


def _run(arguments: argparse.Namespace) -> int:
    peers = [engine(name, arguments.threads) for name in NAMES]
    missing = [reason for peer in peers if (reason := peer.missing())]
    if missing:
        raise UnknownName(missing[0])
    make_models()
    place = {
        "checkpoint": str(ROOT),
        "gguf": str(Q8_0),
        "engine": str(ENGINE),
        "num_threads": str(arguments.threads),
        "context_tokens": str(CONTEXT_TOKENS),
    }
    running: list[PeerProcess] = []
    taken: dict[str, list[Times]] = {name: [] for name in NAMES}
    try:
        for peer in peers:
            running.append(PeerProcess.start(peer, place))
        for number in range(arguments.rounds + 1):
            for process in running:
                times = token_times(process, number, arguments.tokens)
                if number:
                    taken[process.engine.name].append(times)
    except PeerFailed as reason:
        print(reason, file=sys.stderr)
        return WRONG_QUESTION
    finally:
        for process in running:
            process.end()
    versions = ", ".join(process.version for process in running)
    print(f"{device()}, {arguments.threads} threads, commit {commit()}, {versions}, {Q8_0.name}")
    for place_in_times, clock in enumerate(("ms of CPU time a token", "ms a token by the clock")):
        by_peer = [[times[place_in_times] for times in taken[name]] for name in NAMES]
        for name, seconds in zip(NAMES, by_peer, strict=True):
            print(described(name, seconds, 1e3, f"{clock}, {len(seconds)} rounds"))
        ratios = [theirs / ours for ours, theirs in zip(*by_peer, strict=True)]
        print(described("llama_cpp over legokv", ratios, 1, "times"))
    return 0


def main() -> int:
    return run(lambda: _run(parse_arguments()))


if __name__ == "__main__":
    sys.exit(main())
