"""Laws of the files' format, against a writer of our own: everything comes back, and no damage goes unnoticed."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_writer import entry, message, slow_checksum, snappy_literals, stored, table, varint, write
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.errors import CheckpointError
from modulekit.sonnet import crc32c, slices, snappy, sstable, wire

RECORDED = Path(__file__).parent / "recorded"
COUNTS = st.integers(0, 2**64 - 1)


# The parts.


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_rfc_3720(data: bytes, checksum: int) -> None:
    assert crc32c.crc32c(data) == slow_checksum(data) == checksum


@pytest.mark.parametrize("length", [1023, 1024, 1027, 65535, 65536, 65537, 65538, 65539, 65540, 131075])
def test_checksums_of_long_data_are_those_of_the_definition(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c.crc32c(data) == slow_checksum(data)
    assert crc32c.masked(crc32c.crc32c(data)) == stored(data)


@given(COUNTS, st.binary(max_size=3))
def test_varints_come_back(number: int, rest: bytes) -> None:
    assert wire.varint(varint(number) + rest, 0) == (number, len(varint(number)))


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"", "a varint runs past the end of its 0 bytes"), (b"\x80" * 11, "a varint at byte 0 is longer than ten bytes")],
)
def test_no_varint_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        wire.varint(data, 0)


@given(st.lists(st.tuples(st.integers(1, 10**6), st.one_of(COUNTS, st.binary(max_size=200)))))
def test_messages_come_back(fields: list[tuple[int, Any]]) -> None:
    assert list(wire.fields(message(*fields))) == fields


@given(st.lists(st.tuples(st.integers(1, 100), st.binary(min_size=1, max_size=20)), min_size=1), st.data())
def test_a_message_that_is_cut_off_inside_of_a_field_is_refused(fields: list[tuple[int, Any]], data: Any) -> None:
    text = message(*fields)
    whole = {len(message(*fields[:count])) for count in range(len(fields) + 1)}
    length = data.draw(st.integers(0, len(text)).filter(lambda length: length not in whole))
    with pytest.raises(ValueError, match="past the end"):
        list(wire.fields(text[:length]))


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_numbers_come_back(number: int) -> None:
    assert wire.signed(number % 2**64) == number


def test_fields_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="a field holds bytes where a number belongs"):
        wire.number(b"1")
    with pytest.raises(ValueError, match="a field holds a number where bytes belong"):
        wire.text(1)
    with pytest.raises(ValueError, match="a field of type 3, which no message has"):
        list(wire.fields(b"\x0b"))


@given(st.binary(max_size=500))
def test_literals_are_unpacked(data: bytes) -> None:
    assert snappy.unpacked(snappy_literals(data)) == data


def test_copies_and_long_literals_are_unpacked() -> None:
    long = bytes(range(200)) * 2
    packed = varint(412) + bytes([61 << 2]) + (399).to_bytes(2, "little") + long
    packed += bytes([1 | 0 << 2 | 1 << 5, 0x90]) + bytes([2 | 3 << 2, 2, 0]) + bytes([3 | 3 << 2, 4, 0, 0, 0])
    assert snappy.unpacked(packed) == long + long[:4] + long[2:4] * 2 + long[2:4] * 2


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (bytes([9, 4, 97]), "the packed data end 1 bytes too early"),
        (bytes([9, 0, 97, 13, 2]), "a copy from 2 bytes back, of 1 that there are"),
        (bytes([9, 0, 97]), "unpacked to 1 bytes and more, not to 9 as announced"),
    ],
)
def test_damaged_packing_is_refused(packed: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        snappy.unpacked(packed)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.binary(max_size=30), st.binary(max_size=40), max_size=40), st.integers(1, 20), st.booleans())
def test_tables_come_back(entries: dict[bytes, bytes], per_block: int, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table"
        path.write_bytes(table(entries, per_block, packed))
        assert list(sstable.read_table(path).items()) == sorted(entries.items())


@pytest.mark.parametrize(
    ("number", "text"), [(0, "80"), (63, "bf"), (64, "c040"), (-1, "7f"), (-64, "40"), (-65, "3fbf"), (8192, "e02000")]
)
def test_ordered_numbers_are_those_of_ordered_code(number: int, text: str) -> None:
    assert slices.key("", (slices.Extent(number, number),))[-len(text) :].hex() == text * 2


# Whole checkpoints.


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_checkpoints_of_any_dtype_shape_order_of_bytes_and_number_of_files_come_back(data: Any) -> None:
    big_endian = data.draw(st.booleans())
    kinds = [np.float32, np.int64, np.bool_, np.complex64, np.float16] + ([] if big_endian else [ml_dtypes.bfloat16])
    names = data.draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True)
    )
    arrays = {}
    for name in names:
        shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
        numbers = data.draw(st.lists(st.integers(-9, 9), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        arrays[name] = np.array(numbers).reshape(shape).astype(data.draw(st.sampled_from(kinds)))
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory) / "x"
        write(
            prefix, arrays, shards=data.draw(st.integers(1, 3)), big_endian=big_endian, packed=data.draw(st.booleans())
        )
        checkpoint = mk.sonnet.read_checkpoint(prefix)
        assert set(checkpoint) == set(arrays)
        for name, array in arrays.items():
            read = checkpoint[name].numpy()
            assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (
            message((1, 1), (3, message((1, 9), (2, 2)))),
            "a reader of version 2 or newer is needed, and this one is of version 1",
        ),
        (message((1, 1), (2, 2)), "2 is no order of bytes"),
    ],
)
def test_an_unknown_version_or_order_of_bytes_is_refused(tmp_path: Path, header: bytes, problem: str) -> None:
    write(tmp_path / "x", {}, header=header)
    with pytest.raises(CheckpointError, match=f"x: its header cannot be read: {problem}"):
        mk.sonnet.read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": 20}, r"tensor 'w' of .* is of TensorFlow's type 20, for which there is no array"),
        ({"size": 8}, r"x.index is damaged: tensor 'w' of shape \[3\] has 12 bytes, not 8"),
        ({"shape": message((2, message((1, -1))))}, r"the entry of b'w' cannot be read: its shape is \[-1\]"),
        ({"shape": message((3, 1))}, "the entry of b'w' cannot be read: its rank is unknown"),
    ],
)
def test_what_no_array_can_be_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    array = np.zeros(3, np.float32)
    write(tmp_path / "x", {"w": array})
    entries = {b"": message((1, 1)), b"w": entry(array, 0, array.tobytes(), **changes)}
    (tmp_path / "x.index").write_bytes(table(entries))
    with pytest.raises(CheckpointError, match=problem):
        mk.sonnet.read_checkpoint(tmp_path / "x")["w"].numpy()


def test_a_table_without_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(table({b"w": b""}))
    with pytest.raises(CheckpointError, match=r"x.index is no index of a TensorFlow checkpoint: it has no header"):
        mk.sonnet.read_checkpoint(tmp_path / "x")


def write_sliced(prefix: Path, listed: list[tuple[int, int]], there: dict[tuple[int, int], list[float]]) -> None:
    """Writes a tensor `w` of four numbers in slices `(start, length)`: those that its entry lists, and those there are."""
    whole = message((1, 1), (2, message((2, message((1, 4))))))
    whole += b"".join(message((7, message((1, message((1, start), (2, length)))))) for start, length in listed)
    entries, data = {b"": message((1, 1)), b"w": whole}, b""
    for (start, length), numbers in there.items():
        array = np.array(numbers, np.float32)
        entries[b"\0w\0\1\1\1" + bytes([0x80 | start, 0x80 | length])] = entry(array, len(data), array.tobytes())
        data += array.tobytes()
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


def test_slices_are_joined(tmp_path: Path) -> None:
    write_sliced(tmp_path / "x", [(2, 2), (0, 2)], {(0, 2): [1, 2], (2, 2): [3, 4]})
    assert mk.sonnet.read_checkpoint(tmp_path / "x")["w"].numpy().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("listed", "there", "problem"),
    [
        ([(0, 2), (2, 2)], {(0, 2): [1, 2]}, r"the slice \[2:4\] of tensor 'w' is missing"),
        ([(0, 2), (1, 2)], {(0, 2): [1, 2], (1, 2): [3, 4]}, "the slices of tensor 'w' hold 3 of its 4 values"),
        ([(0, 2), (2, 2)], {(0, 2): [1], (2, 2): [3, 4]}, r"tensor 'w' has a slice \[0:2\] of shape \[1\]"),
        ([(0, 3), (3, 2)], {(0, 3): [1, 2, 3], (3, 2): [4, 5]}, "tensor 'w' has a slice from 3 to 5 on an axis of 4"),
    ],
)
def test_slices_that_do_not_make_the_tensor_are_refused(
    tmp_path: Path, listed: list[tuple[int, int]], there: dict[tuple[int, int], list[float]], problem: str
) -> None:
    write_sliced(tmp_path / "x", listed, there)
    with pytest.raises(CheckpointError, match=rf"x\.index is damaged: {problem}"):
        mk.sonnet.read_checkpoint(tmp_path / "x")["w"].numpy()


# Damage.


def content(prefix: Path) -> dict[str, tuple[Any, ...]]:
    checkpoint = mk.sonnet.read_checkpoint(prefix)
    read = {path: (tensor.name, tensor.numpy()) for path, tensor in checkpoint.items()}
    return {path: (name, array.dtype, array.shape, array.tolist()) for path, (name, array) in read.items()}


DAMAGED = [
    ("kinds", "kinds.index"), ("kinds", "kinds.data-00000-of-00001"), ("slices", "slices.index"),
    ("slices", "slices.data-00001-of-00003"),
]  # fmt: skip


def read_with(name: str, file: str, damaged: bytes) -> str:
    """Returns what a checkpoint holds with other bytes in one of its files, as text (for nan); `refused` if it is."""
    with tempfile.TemporaryDirectory() as directory:
        for path in RECORDED.glob(f"{name}.*"):
            if path.suffix != ".npz":
                shutil.copy(path, directory)
        (Path(directory) / file).write_bytes(damaged)
        try:
            return repr(content(Path(directory) / name))
        except CheckpointError as error:
            return "refused" if name in str(error) else f"refused without its name: {error}"


@pytest.mark.parametrize(("name", "file"), DAMAGED)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_changes_nothing_or_is_refused(name: str, file: str, data: Any) -> None:
    damaged = bytearray((RECORDED / file).read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    assert read_with(name, file, bytes(damaged)) in ("refused", repr(content(RECORDED / name)))


@pytest.mark.parametrize(("name", "file"), DAMAGED)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_file_that_is_cut_off_is_refused(name: str, file: str, data: Any) -> None:
    whole = (RECORDED / file).read_bytes()
    assert read_with(name, file, whole[: data.draw(st.integers(0, len(whole) - 1))]) == "refused"


def test_a_flipped_bit_in_each_byte_of_an_index_changes_nothing_or_is_refused() -> None:
    good, index = repr(content(RECORDED / "shards")), (RECORDED / "shards.index").read_bytes()
    outcomes = []
    for position in range(len(index)):
        damaged = index[:position] + bytes([index[position] ^ 1 << position % 8]) + index[position + 1 :]
        outcomes.append(read_with("shards", "shards.index", damaged))
    assert set(outcomes) == {"refused", good}
    assert outcomes.count(good) <= 40 + 13  # what is left of the footer, and an empty block of notes
