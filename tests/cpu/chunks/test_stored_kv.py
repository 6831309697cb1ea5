"""KV rounded to int8: how far it moves, how small it is, and that it is rounded once only."""

import pytest
import torch

from legokv.built.settings import EngineSettings
from legokv.chunks.stored_form import encode_chunk
from legokv.chunks.stored_kv import Int8Kv, from_stored, is_finite, to_stored
from legokv.errors import InvalidRequest

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def kv(dtype, *, size=1.0, num_tokens=50, head_size=64):
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(3, 2, num_tokens, 3, head_size, generator=generator)
    # Heads of very different sizes, as keys have them, and single values far above the others.
    drawn *= size * torch.logspace(-2, 2, 3)[:, None]
    drawn[..., 5] *= 30
    return drawn.to(dtype)


def rounded(given):
    return from_stored(to_stored(given, "int8"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_value_moves_further_than_half_a_step_of_its_head(dtype):
    given = kv(dtype).double()
    back = rounded(kv(dtype)).double()
    largest = given.abs().amax(-1, keepdim=True)
    # Half a step of 127, and half a unit in the last place of the type it comes back in.
    bound = largest / 254 + largest * torch.finfo(dtype).eps
    assert ((given - back).abs() <= bound).all()
    assert not torch.equal(given, back)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-5, 1e4, 1e-38], ids="size {:g}".format)
def test_what_was_rounded_once_is_not_changed_by_rounding_it_again(dtype, size):
    given = kv(dtype, size=size)
    given = given.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    once = rounded(given)
    assert torch.isfinite(once).all()
    assert torch.equal(rounded(once), once)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_value_of_a_head_comes_back_exactly_and_a_head_of_zeros_as_zeros(dtype):
    given = kv(dtype)
    given[0, 0, 0] = 0
    back = rounded(given)
    assert torch.equal(back.abs().amax(-1), given.abs().amax(-1))
    assert not back[0, 0, 0].any()


def test_a_token_s_values_do_not_depend_on_the_tokens_beside_it():
    given = kv(torch.bfloat16)
    assert torch.equal(rounded(given)[:, :, :7], rounded(given[:, :, :7]))


def test_int8_takes_a_byte_a_value_and_a_scale_a_head():
    given = kv(torch.bfloat16)
    stored = to_stored(given, "int8")
    assert stored.nbytes == given.numel() + 2 * given.numel() // 64
    assert stored.nbytes < 0.52 * given.nbytes
    # Of a chunk of a usual length the header is next to nothing.
    long = kv(torch.bfloat16, num_tokens=512)
    ids = range(512)
    plain, small = (encode_chunk("0f" * 32, ids, to_stored(long, d)) for d in ("model", "int8"))
    assert small.num_bytes < 0.52 * plain.num_bytes


def test_the_model_s_own_type_is_kept_as_it_is():
    given = kv(torch.bfloat16)
    assert to_stored(given, "model") is given
    assert from_stored(given) is given


def test_a_form_that_there_is_not_is_refused_by_name():
    with pytest.raises(InvalidRequest, match="kv_stored_dtype is one of model, int8, not 'fp8'"):
        EngineSettings(kv_stored_dtype="fp8")


def test_pinning_int8_pins_values_and_scales(monkeypatch):
    # Stands in for a GPU's driver, without which torch pins nothing.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    stored = Int8Kv(torch.zeros(2, dtype=torch.int8), torch.ones(1))
    assert stored.pin_memory().nbytes == stored.nbytes
    assert [tensor.dtype for tensor in pinned] == [torch.int8, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_is_found_wherever_it_is(dtype, value):
    given = kv(dtype, num_tokens=3, head_size=7)
    assert is_finite(given)
    flat = given.view(-1)
    for place in range(flat.numel()):
        before = flat[place].item()
        flat[place] = value
        assert not is_finite(given), place
        flat[place] = before
    assert is_finite(torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype))
