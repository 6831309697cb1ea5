"""Imports on a stream of their own beside steps, with the product's runner and its pools."""

import torch
from device_runner import device_runner
from gpu_kernels import Kernels
from plan_lockstep import NUM_PAGES, read_what_arrives
from test_system import random_weights, tiny_config
from torch import Tensor

from legokv.runners import Runner
from legokv.runners.page_store import page_blocks
from legokv.step.batch import StepBatch, step_batch

PAGE_SIZE = 16
# The pages of `read_what_arrives`, and as many others.
PAGES, OTHERS = [NUM_PAGES - 2, NUM_PAGES - 1], [3, 8]
# Long beside any import here, and short beside a test.
LATE_CYCLES = 100_000_000


def runner_and_step(kernels: Kernels, seed: int) -> tuple[Runner, StepBatch]:
    """A step of one token that reads PAGES, into which its runner has imported something."""
    config = tiny_config()
    weights = random_weights(config, torch.bfloat16, seed)
    runner = device_runner(kernels, config, weights, NUM_PAGES, PAGE_SIZE)
    return runner, step_batch([read_what_arrives([runner], config, seed)])


def stored(seed: int, num_tokens: int = 20) -> Tensor:
    """KV of the tiny model as a tier has it: in pinned memory where there is a GPU."""
    config = tiny_config()
    shape = (config.num_layers, 2, num_tokens, config.num_kv_heads, config.head_size)
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return kv.pin_memory() if torch.cuda.is_available() else kv


def keep_busy(kernels: Kernels) -> None:
    """What is put on the device's own stream from here on is late."""
    if kernels.device.type == "cuda":
        torch.cuda._sleep(LATE_CYCLES)


def finish(kernels: Kernels) -> None:
    if kernels.device.type == "cuda":
        torch.cuda.synchronize()


def arrived(runner: Runner) -> Tensor:
    """What PAGES hold once what stands before on torch's current stream is done."""
    return torch.stack([pool[PAGES[0] :].clone() for pool in runner.pools])


def in_pages(kv: Tensor) -> Tensor:
    return page_blocks(kv, len(PAGES), PAGE_SIZE)


def test_a_step_under_way_reads_its_pages_as_they_were_before_a_later_import(
    kernels: Kernels, seed: int
) -> None:
    runner, batch = runner_and_step(kernels, seed)
    old, new = stored(seed + 1), stored(seed + 2)
    runner.import_pages(PAGES, old)
    with runner._store.step(batch):
        keep_busy(kernels)
        before = arrived(runner)
    runner.import_pages(PAGES, new)
    with runner._store.step(batch):
        after = arrived(runner)
    assert torch.equal(before.cpu(), in_pages(old))
    assert torch.equal(after.cpu(), in_pages(new))


def test_an_import_of_other_pages_is_done_while_a_step_is_late(kernels: Kernels, seed: int) -> None:
    runner, batch = runner_and_step(kernels, seed)
    kv = stored(seed + 3, num_tokens=2 * PAGE_SIZE)
    with runner._store.step(batch):
        keep_busy(kernels)
    runner.import_pages(OTHERS, kv)
    if kernels.device.type == "cuda":
        runner._store._beside._stream.synchronize()
        late = not torch.cuda.current_stream().query()
        assert late, "the import waited for a step that has none of its pages"
    pools = torch.stack([pool[OTHERS].cpu() for pool in runner.pools])
    assert torch.equal(pools, in_pages(kv))


def test_many_imports_one_behind_another_are_each_read_by_the_next_step(
    kernels: Kernels, seed: int
) -> None:
    runner, batch = runner_and_step(kernels, seed)
    kvs = [stored(seed + number) for number in range(4, 9)]
    meant, made = [], []
    for kv in kvs:
        runner.import_pages(PAGES, kv)
        finish(kernels)
        meant.append(runner.run(batch).cpu())
    finish(kernels)
    for kv in kvs:
        keep_busy(kernels)
        runner.import_pages(PAGES, kv)
        made.append(runner.run(batch))
    for logits, of_one in zip(made, meant, strict=True):
        assert torch.equal(logits.cpu(), of_one)
