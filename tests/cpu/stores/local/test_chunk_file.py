import json
import struct

import pytest
import torch
from safetensors import safe_open

from legokv.chunks.header import STORED_DTYPES
from legokv.chunks.stored_kv import Int8Kv, from_stored, to_stored
from legokv.errors import ChunkUnreadable
from legokv.model.dtypes import FLOAT_DTYPES
from legokv.stores.local.files import read_chunk, write_chunk

KEY = "0f" * 32
IDS = (5, 6, 7)


def kv(dtype=torch.bfloat16, num_tokens=3):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 2, num_tokens, 1, 4, generator=generator).to(dtype)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "0f" / f"{KEY}.safetensors"
    write_chunk(path, KEY, IDS, kv())
    return path


@pytest.fixture(params=STORED_DTYPES)
def either(request, tmp_path):
    """A file of either form, and the KV it gives."""
    path = tmp_path / "either.safetensors"
    kept = to_stored(kv(), request.param)
    write_chunk(path, KEY, IDS, kept)
    return path, from_stored(kept)


def rewrite_header(path, change):
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    fields = json.loads(content[8 : 8 + length])
    change(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_the_table_of_types_says_what_torch_and_the_file_do(tmp_path):
    for name, known in FLOAT_DTYPES.items():
        dtype = getattr(torch, known.name)
        assert dtype.itemsize == known.item_bytes
        write_chunk(tmp_path / name, KEY, IDS, kv(dtype))
        with safe_open(tmp_path / name, "pt") as file:
            assert file.get_slice("kv").get_dtype() == name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_chunk_comes_back_bit_for_bit_in_its_own_type(tmp_path, dtype):
    path = tmp_path / "chunk.safetensors"
    write_chunk(path, KEY, IDS, kv(dtype))
    back = read_chunk(path, KEY, IDS)
    assert back.dtype == dtype
    assert back.shape == (2, 2, 3, 1, 4)
    assert torch.equal(back, kv(dtype))


def test_a_strided_kv_is_stored_in_its_logical_order(tmp_path):
    path = tmp_path / "chunk.safetensors"
    strided = kv().transpose(3, 4).contiguous().transpose(3, 4)
    write_chunk(path, KEY, IDS, strided)
    assert torch.equal(read_chunk(path, KEY, IDS), kv())


def test_the_same_kv_gives_the_same_bytes_whoever_wrote_it(tmp_path, stored):
    again = tmp_path / "elsewhere.safetensors"
    write_chunk(again, KEY, IDS, kv().clone())
    assert again.read_bytes() == stored.read_bytes()


def test_the_safetensors_package_reads_the_file(stored):
    with safe_open(stored, framework="pt") as file:
        assert list(file.keys()) == ["kv"]
        assert torch.equal(file.get_tensor("kv"), kv())
        assert file.metadata()["key"] == KEY


def test_int8_comes_back_value_for_value_with_its_scales(tmp_path):
    path = tmp_path / "chunk.safetensors"
    kept = to_stored(kv(), "int8")
    write_chunk(path, KEY, IDS, kept)
    back = read_chunk(path, KEY, IDS)
    assert isinstance(back, Int8Kv)
    assert torch.equal(back.values, kept.values)
    assert torch.equal(back.scales, kept.scales)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["kv", "scales"]
        assert torch.equal(file.get_tensor("kv"), kept.values)
        assert torch.equal(file.get_tensor("scales"), kept.scales)


def test_writing_leaves_no_temporary_file_and_replaces_what_was_there(stored):
    write_chunk(stored, KEY, IDS, kv() + 1)
    assert torch.equal(read_chunk(stored, KEY, IDS), kv() + 1)
    assert list(stored.parent.iterdir()) == [stored]


def test_who_reads_while_another_writes_sees_the_old_file_whole(stored):
    before = stored.read_bytes()
    with open(stored, "rb", buffering=0) as reader:
        start = reader.read(100)
        write_chunk(stored, KEY, IDS, kv() + 1)
        assert start + reader.read() == before


def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path):
    folder_in_the_way = tmp_path / "chunk.safetensors"
    folder_in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        write_chunk(folder_in_the_way, KEY, IDS, kv())
    assert list(tmp_path.iterdir()) == [folder_in_the_way]


def test_kv_of_another_number_of_tokens_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="KV of 3 tokens"):
        write_chunk(tmp_path / "chunk", KEY, IDS, kv(num_tokens=4))


def test_a_chunk_that_is_gone_is_unreadable(tmp_path):
    with pytest.raises(ChunkUnreadable, match="No such file") as gone:
        read_chunk(tmp_path / "gone.safetensors", KEY, IDS)
    assert gone.value.reason == "missing"


def test_a_file_that_the_system_cannot_read_is_unreadable(tmp_path):
    with pytest.raises(ChunkUnreadable, match="Is a directory") as refused:
        read_chunk(tmp_path, KEY, IDS)
    assert refused.value.reason == "io"


def test_a_file_cut_short_anywhere_is_unreadable(either, record_property):
    path, _ = either
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ChunkUnreadable):
            read_chunk(path, KEY, IDS)
    record_property("fact", f"cut at each of {len(content)} lengths, never readable")


def test_a_file_with_any_one_byte_changed_never_gives_other_kv(either, record_property):
    path, expected = either
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x15
        path.write_bytes(damaged)
        try:
            back = read_chunk(path, KEY, IDS)
        except ChunkUnreadable:
            continue
        # Only what this program does not rely on, such as padding, may change unnoticed.
        assert torch.equal(from_stored(back), expected)
    record_property("fact", f"each of {len(content)} bytes changed, never other KV")


def test_a_damaged_byte_of_kv_is_named_as_such(stored):
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    with pytest.raises(ChunkUnreadable, match="checksum"):
        read_chunk(stored, KEY, IDS)


def test_another_chunks_file_is_unreadable_under_this_key(stored):
    with pytest.raises(ChunkUnreadable, match=f"holds chunk {KEY}, not {'1f' * 32}"):
        read_chunk(stored, "1f" * 32, IDS)


def test_a_file_compiled_from_other_ids_is_unreadable(stored):
    with pytest.raises(ChunkUnreadable, match="other token ids"):
        read_chunk(stored, KEY, (5, 6, 8))


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("shape", [2, 2, 3, 4, 1], "checksum"),
        ("shape", [2, 2, 6, 1, 2], "shape"),
        ("shape", [2, 2, 3, 1, 5], "its header says 120"),
        ("shape", [12, 4], "shape"),
        ("dtype", "F16", "checksum"),
        ("dtype", "I64", "no KV is stored as I64"),
        ("shape", "wide", "header is damaged"),
    ],
)
def test_a_wrong_shape_or_type_in_the_header_is_noticed(stored, part, value, reason):
    rewrite_header(stored, lambda fields: fields["kv"].update({part: value}))
    with pytest.raises(ChunkUnreadable, match=reason):
        read_chunk(stored, KEY, IDS)


@pytest.mark.parametrize(
    ("tensor", "change", "reason"),
    [
        ("kv", {"dtype": "BF16"}, "its header says 96"),
        ("scales", {"dtype": "F16"}, "checksum"),
        ("scales", {"dtype": "I8"}, "no KV is stored as I8"),
        ("scales", {"shape": [2, 2, 3, 2]}, "scales of"),
        ("kv", {"shape": [2, 2, 3, 2, 2]}, "scales of"),
    ],
)
def test_a_wrong_shape_or_type_of_scales_is_noticed(tmp_path, tensor, change, reason):
    path = tmp_path / "chunk.safetensors"
    write_chunk(path, KEY, IDS, to_stored(kv(), "int8"))
    rewrite_header(path, lambda fields: fields[tensor].update(change))
    with pytest.raises(ChunkUnreadable, match=reason):
        read_chunk(path, KEY, IDS)


def test_int8_without_its_scales_is_unreadable(tmp_path):
    path = tmp_path / "chunk.safetensors"
    write_chunk(path, KEY, IDS, to_stored(kv(), "int8"))
    rewrite_header(path, lambda fields: fields.pop("scales"))
    with pytest.raises(ChunkUnreadable, match="header is damaged"):
        read_chunk(path, KEY, IDS)


def test_a_file_of_another_format_version_is_named_as_such(stored):
    rewrite_header(stored, lambda fields: fields["__metadata__"].update(version="99"))
    with pytest.raises(ChunkUnreadable, match="format version 99"):
        read_chunk(stored, KEY, IDS)


def test_an_absurd_header_length_is_refused_without_reading_it(stored):
    content = stored.read_bytes()
    stored.write_bytes(struct.pack("<Q", 2**60) + content[8:])
    with pytest.raises(ChunkUnreadable, match="short"):
        read_chunk(stored, KEY, IDS)
