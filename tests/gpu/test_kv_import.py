"""The import kernel: pages from device and pinned host memory, converted, past 2^31 elements."""

import pytest
import torch
from gpu_kernels import Kernels
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PINNED = "pinned"
SOURCES = ["device", PINNED]


def block_of(kernels: Kernels, block: Tensor, source: str) -> Tensor:
    if source == PINNED and kernels.device.type == "cuda":
        return block.pin_memory()
    return block.to(kernels.device)


def numbers(kernels: Kernels, *pages: int) -> Tensor:
    return torch.tensor(pages, dtype=torch.int32, device=kernels.device)


def import_pages(kernels: Kernels, pool: Tensor, block: Tensor, pages: Tensor) -> None:
    kernels.launchers.kv_import(pool, block, pages, kernels.stream())
    if kernels.device.type == "cuda":
        # The block may lie in host memory, which torch would free too early.
        torch.cuda.synchronize()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("block_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [(16, 3, 80), (32, 1, 64), (64, 8, 128), (16, 2, 96)], ids=str)
def test_imported_pages_are_converted_and_the_others_untouched(
    kernels: Kernels,
    seed: int,
    page: tuple[int, int, int],
    pool_dtype: torch.dtype,
    block_dtype: torch.dtype,
    source: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn((3, 2, *page), generator=generator).to(block_dtype)
    pool = torch.full((6, 2, *page), torch.nan, dtype=pool_dtype, device=kernels.device)
    import_pages(kernels, pool, block_of(kernels, block, source), numbers(kernels, 4, 0, 2))
    assert torch.equal(pool[[4, 0, 2]].cpu(), block.to(pool_dtype))
    assert pool[[1, 3, 5]].isnan().all()


@pytest.mark.parametrize("source", SOURCES)
def test_an_import_of_no_page_writes_nothing(kernels: Kernels, source: str) -> None:
    pool = torch.full((3, 2, 16, 2, 64), 5.0, device=kernels.device)
    import_pages(kernels, pool, block_of(kernels, pool[:0].cpu(), source), numbers(kernels))
    assert (pool == 5.0).all()


def test_pages_outside_the_pool_are_not_written(kernels: Kernels) -> None:
    whole = torch.full((5, 2, 16, 2, 64), 5.0, device=kernels.device)
    block = torch.ones((3, 2, 16, 2, 64), device=kernels.device)
    import_pages(kernels, whole[1:4], block, numbers(kernels, -1, 3, 1))
    assert (whole[[0, 1, 3, 4]] == 5.0).all()
    assert (whole[2] == 1.0).all()


def test_pages_past_two_to_the_31_elements_are_written(
    kernels: Kernels, gpu: torch.device, seed: int
) -> None:
    page = (2, 16, 8, 128)
    block = torch.randn((2, *page), generator=torch.Generator().manual_seed(seed)).bfloat16()
    last = 2**31 // block[0].numel() + 1
    pool = torch.full((last + 1, *page), torch.nan, dtype=torch.bfloat16, device=gpu)
    import_pages(kernels, pool, block.to(gpu), numbers(kernels, last, 7))
    assert torch.equal(pool[[last, 7]].cpu(), block)
    assert pool[:7].isnan().all()
    assert pool[8:last].isnan().all()
