"""The structs of the C++ kernels: Python's are C's, field by field."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from rmeeto.ops import build
from rmeeto.ops.add_norm.cpp import NormStruct
from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.conv1d.cpp import ConvStruct
from rmeeto.ops.cpp_support import constant, pointer, rows, spread
from rmeeto.ops.selective_scan.cpp import DirectionStruct, ScanStruct
from rmeeto.ops.token_merge.cpp import MatchStruct, MergeStruct

KINDS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "Direction": DirectionStruct}
STRUCTS = {
    "conv.cpp Conv": ConvStruct,
    "merge.cpp Match": MatchStruct,
    "merge.cpp Merge": MergeStruct,
    "norm.cpp Norm": NormStruct,
    "scan.cpp Direction": DirectionStruct,
    "scan.cpp Scan": ScanStruct,
}


def fields_in_c(file: str, name: str) -> list[tuple[str, type]]:
    """Names and types of a struct's fields, in order; methods come after an empty line."""
    source = (build.SOURCES / file).read_text()
    body = re.search(rf"^struct {name} {{\n(.*?)(?:\n\n|\n}};)", source, re.DOTALL | re.MULTILINE)
    fields: list[tuple[str, type]] = []
    for declaration in re.sub(r"//.*", "", body[1]).split(";")[:-1]:
        kind, names = re.fullmatch(r"(?:const )?(\w+)(.*)", declaration.strip(), re.DOTALL).groups()
        for star, field, size in re.findall(r"(\*?)\s*(\w+)(?:\[(\d+)\])?", names):
            one = ctypes.c_void_p if star else KINDS[kind]
            fields.append((field, one * int(size) if size else one))
    return fields


@pytest.mark.parametrize("where", STRUCTS)
def test_fields_are_those_of_the_c_struct(where):
    struct = STRUCTS[where]
    own = [field for base in reversed(struct.__mro__) for field in vars(base).get("_fields_", [])]
    assert own == fields_in_c(*where.split())


@pytest.mark.parametrize("where", [name for name in STRUCTS if "Direction" not in name])
def test_sizes_are_those_of_the_c_compiler(where):
    try:
        build.library()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    size = constant(f"rmeeto_{where.split()[1].lower()}_size")
    assert size == ctypes.sizeof(STRUCTS[where])


@pytest.mark.parametrize("where", STRUCTS)
def test_a_name_that_the_struct_does_not_have_is_an_error(where):
    with pytest.raises(AttributeError, match="no attribute 'u_row'"):
        STRUCTS[where]().u_row = 1


def test_addresses_and_strides():
    x = torch.zeros(2, 3, 4)
    assert spread(x) == (x.data_ptr(), 12, 4)
    assert (pointer(x), pointer(None), spread(None)) == (x.data_ptr(), 0, (0, 0, 0))


def test_only_channels_that_lie_apart_are_copied():
    x = torch.zeros(2, 3, 4)
    assert rows(x[:, ::2]).data_ptr() == x.data_ptr()
    assert rows(x.transpose(1, 2)).stride(-1) == 1
