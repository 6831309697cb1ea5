"""The reference of long GPU cases against that of the short ones."""

import torch
from attention_cases import (
    Sequence,
    Step,
    decoded,
    expected_out,
    expected_pool,
    linked,
    make_inputs,
    whole_chunk,
)
from dense_attention import dense_out


def test_the_dense_reference_is_that_of_the_loops() -> None:
    sequences = (
        whole_chunk(1),
        Sequence((), ()),
        linked((20, 33, 17), link_tokens=5, fresh=4),
        decoded(49),
        Sequence((18,), (0, 3, 17), unwritten=(3,)),
    )
    inputs = make_inputs(Step(sequences, heads=(6, 2), seed=1))
    pool = expected_pool(inputs)
    torch.testing.assert_close(
        dense_out(inputs, pool), expected_out(inputs, pool), rtol=0, atol=1e-12
    )
