"""Files of safetensors: those of the package read to the bit, headers that do not fit their file refused."""

import json

import pytest
import safetensors.torch
import torch

from rmeeto.reader import Unreadable, read_header, read_safetensors
from rmeeto.reader.safetensors import _TYPES


def test_what_the_package_writes_is_read_to_the_bit(tmp_path):
    path, draw = tmp_path / "w.safetensors", torch.Generator().manual_seed(0)
    written = {
        str(kind): torch.randint(0, 2, (3, n), generator=draw).to(kind)  # odd lengths: places that are not aligned
        for n, kind in enumerate(_TYPES.values(), start=1)
    }
    written |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 7)}
    safetensors.torch.save_file(written, path, metadata={"format": "pt"})
    found, header = read_safetensors(path), read_header(path)
    assert found.keys() == header.keys() == written.keys()
    for name, value in written.items():
        assert found[name].dtype == header[name].dtype == value.dtype
        assert found[name].shape == header[name].shape == value.shape
        assert found[name].contiguous().view(-1).view(torch.uint8).equal(value.view(-1).view(torch.uint8))


def test_what_is_read_can_be_written_to_and_the_file_stays(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(5)}, path)
    before = path.read_bytes()
    read_safetensors(path)["a"].zero_()
    assert path.read_bytes() == before


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "a list": [],
    "a type of its own": {"a": entry("F31")},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "a shape below zero": {"a": entry(shape=(-1, -1))},
    "a shape that is true": {"a": entry(shape=(True,))},
    "an empty shape too large for any tensor": {
        "a": entry(shape=(0, 2**47, 2**47), offsets=(0, 0)),
        "b": entry(),
    },
    "a place in the header": {"a": entry(offsets=(-4, 0))},
    "places that are no whole numbers": {"a": entry(offsets=(0.0, 4.0))},
    "three places": {"a": entry(offsets=(0, 4, 4))},
    "places that overlap": {"a": entry(), "b": entry()},
    "a hole": {"a": entry(offsets=(4, 8))},
    "more than the file has": {"a": entry(shape=(2,), offsets=(0, 8))},
    "less than the file has": {"a": entry("F16", offsets=(0, 2))},
    "a shape that is not its bytes": {"a": entry(shape=(2,))},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path, name):
    header = json.dumps(HEADERS[name]).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    for read in (read_header, read_safetensors):
        with pytest.raises(Unreadable):
            read(path)
