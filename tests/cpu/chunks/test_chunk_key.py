import subprocess
import sys

import numpy as np
import pytest

from legokv.chunks.chunk import chunk_key, token_blob, token_digest, tokens_from_blob
from legokv.errors import InvalidRequest


def key(**changes):
    parts = {
        "fingerprint": "ab" * 32,
        "kv_dtype": "bfloat16",
        "namespace": "default",
        "token_ids": [1, 2, 300],
    }
    return chunk_key(**{**parts, **changes})


def test_the_key_of_a_known_chunk_never_changes_unless_the_format_version_does():
    assert key() == "861f98aeea2219ba00eae8c1824c250ed1c48e9fe8274441c274aeb16a832fa6"


def test_another_process_derives_the_same_key_whatever_its_hash_seed():
    program = (
        "from legokv.chunks.chunk import chunk_key;"
        "print(chunk_key('ab' * 32, 'bfloat16', 'default', [1, 2, 300]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == key()


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "cd" * 32},
        {"kv_dtype": "float32"},
        {"namespace": "other"},
        {"token_ids": [1, 2, 301]},
        {"token_ids": [1, 2]},
        {"behind": "ef" * 32},
        {"behind": ""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_that_decides_the_kv_or_its_owner_changes_the_key(change):
    assert key(**change) != key()


def test_moving_a_letter_from_one_part_to_its_neighbour_changes_the_key():
    assert key(kv_dtype="bfloat16d", namespace="efault") != key()


def test_lists_tuples_and_arrays_of_the_same_ids_have_the_same_key():
    ids = [1, 2, 300]
    for same in (tuple(ids), np.array(ids, dtype=np.int64), np.array(ids, dtype=np.uint16)):
        assert key(token_ids=same) == key()


def test_a_torch_tensor_of_ids_has_the_same_key():
    torch = pytest.importorskip("torch")
    assert key(token_ids=torch.tensor([1, 2, 300])) == key()


def test_ids_come_back_from_their_blob_and_the_blob_is_little_endian():
    assert token_blob([1, 258]) == b"\x01\x00\x00\x00\x02\x01\x00\x00"
    assert tokens_from_blob(token_blob([1, 258, 2**31 - 1])) == (1, 258, 2**31 - 1)
    assert tokens_from_blob(token_blob([])) == ()
    assert token_digest([1]) != token_digest([1, 0])


@pytest.mark.parametrize("ids", [[-1], [2**31], [1.0, 2.0], [[1, 2]], ["1"], [True, False]])
def test_what_is_not_a_flat_sequence_of_token_ids_is_refused(ids):
    with pytest.raises(InvalidRequest, match="token ids"):
        token_blob(ids)
