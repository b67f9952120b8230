"""safetensors files: as the format's own library reads and writes them; a bad one is explained."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpulayers.errors import CheckpointError
from gpulayers.training import read_safetensors, write_safetensors
from gpulayers.training.safetensors import UnreadableError

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "every other": np.arange(12, dtype=np.int16)[::2],
    "one number": np.array(3.5),
    "none": np.zeros((0, 3), np.uint16),
    "flags": np.array([True, False, True]),
    "half": np.array([1, np.nan, -np.inf], np.float16),
    "big-endian": np.array([1, 2, -3], ">i4"),
    "bytes": np.arange(5, dtype=np.uint8),
    "wide": np.array([2**64 - 1], np.uint64),
    "complex": np.array([1 + 2j], np.complex64),
    "dots.and ü": np.array([-1], np.int8),
}


def assert_same(found, expected=ARRAYS) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


def test_round_trip(path):
    assert write_safetensors(path, ARRAYS, {"note": "ü"}) == path
    found, metadata = read_safetensors(path)
    assert metadata == {"note": "ü"}
    assert_same(found)
    assert all(array.flags.writeable and array.flags.aligned for array in found.values())
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0
    table = json.loads(path.read_bytes()[8:header])
    for name, array in ARRAYS.items():
        assert table[name]["data_offsets"][0] % array.itemsize == 0, "aligned"


def test_the_formats_own_library_reads_it(path):
    safetensors = pytest.importorskip("safetensors")
    write_safetensors(path, ARRAYS, {"note": "x"})
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["note"] == "x"
        assert_same({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def test_what_the_formats_own_library_writes_is_read(path):
    referee = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(a) for name, a in ARRAYS.items() if name != "big-endian"}
    arrays["one number"] = ARRAYS["one number"]
    referee.save_file(arrays, path, {"format": "np"})
    found, metadata = read_safetensors(path)
    assert metadata == {"format": "np"}
    assert_same(found, arrays)


def test_bfloat16(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"w": np.array([[1.5, -2.0]], ml_dtypes.bfloat16)}
    write_safetensors(path, arrays)
    assert_same(read_safetensors(path)[0], arrays)
    assert_same(safetensors.load_file(path), arrays)


@pytest.mark.parametrize(
    "arrays, metadata, words",
    [
        ({"x": np.zeros(2, np.complex128)}, {}, "x has dtype complex128"),
        ({"x": np.array(["a"])}, {}, "x has dtype <U1"),
        ({"x": [1.0]}, {}, "x must be a NumPy array, got list"),
        ({"__metadata__": np.zeros(1)}, {}, "'__metadata__' is no name"),
        ({3: np.zeros(1)}, {}, "3 is no name"),
        ({}, {"n": 1}, "metadata holds strings"),
    ],
)
def test_what_the_format_cannot_hold(path, arrays, metadata, words):
    with pytest.raises(CheckpointError, match=words):
        write_safetensors(path, arrays, metadata)
    assert not path.exists()


def raw(path, header, data=b"") -> None:
    """A file of this header (JSON if it is no text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    "header, data, words",
    [
        ({"a": entry()}, b"1234", None),  # the others differ from this good one
        ({"a": entry(), "b": entry(offsets=(4, 8))}, b"12345678", None),
        ({"a": entry(shape=(0,), offsets=(0, 0)), "b": entry()}, b"1234", None),
        ({"a": entry(), "b": entry(offsets=(0, 4))}, b"1234", "b begins at 0, expected 4"),
        ({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456", "b begins at 2, expected 4"),
        ({"a": entry(offsets=(4, 8))}, b"12345678", "a begins at 4, expected 0"),
        ({"a": entry()}, b"12345", "need 4 bytes, there are 5"),
        ({"a": entry()}, b"123", "need 4 bytes, there are 3"),
        ({"a": entry(shape=(2,))}, b"1234", "F32 of shape .2. does not fit"),
        ({"a": entry(offsets=(4, 0))}, b"1234", "does not fit the offsets"),
        ({"a": entry(offsets=(0, 4, 8))}, b"1234", "does not fit the offsets"),
        ({"a": entry(shape=(-1,), offsets=(0, 4))}, b"1234", "the shape"),
        ({"a": entry(shape=(1.0,))}, b"1234", "the shape"),
        ({"a": entry(shape=(True,))}, b"1234", "the shape"),
        ({"a": entry(dtype="F33")}, b"1234", "unknown dtype 'F33'"),
        ({"a": entry(dtype=["F32"])}, b"1234", "unknown dtype"),
        ({"a": entry(more=1)}, b"1234", "not described by"),
        ({"a": 3}, b"1234", "not described by"),
        ({"__metadata__": {"x": 1}}, b"", "metadata is not made of strings"),
        ({"__metadata__": []}, b"", "metadata is not made of strings"),
        (b'{"a":{},"a":{}}', b"", "twice"),
        (b"{", b"", "no JSON"),
        (b'{"\xff":1}', b"", "no JSON"),
        (b"[" * 3, b"", "no safetensors file"),
        (b"", b"", "no safetensors file"),
    ],
)
def test_a_file_is_checked_strictly(path, header, data, words):
    raw(path, header, data)
    if words is None:
        assert read_safetensors(path)[0]["b" if len(header) > 1 else "a"].shape == (1,)
        return
    with pytest.raises(UnreadableError, match=words) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


def test_sizes_that_do_not_fit(path):
    for length in (2**63, 10**8 + 1, 60):
        path.write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 50)
        with pytest.raises(UnreadableError, match=f"header of {length} bytes does not fit"):
            read_safetensors(path)
    raw(path, b'{"a":' + b"[" * 100_000)
    with pytest.raises(UnreadableError, match="no JSON"):
        read_safetensors(path)
    with pytest.raises(UnreadableError, match="does not exist"):
        read_safetensors(path.with_name("none"))


def test_a_changed_byte_is_noticed_by_the_checksum(path):
    write_safetensors(path, {"a": np.zeros(4)})
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UnreadableError, match="checksum"):
        read_safetensors(path)
