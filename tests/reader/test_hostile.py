"""The reader on files that mean harm: each is refused in a line, quickly, within little memory."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile

import pytest
import torch

from rmeeto.reader import DIGEST
from tests.limits import ROOT, run_limited
from tests.reader.crafted import (
    BUILD,
    EMPTY,
    MARK,
    REDUCE,
    call,
    doubled,
    entry,
    items,
    name,
    number,
    tensor,
    text,
    zip_file,
)  # fmt: skip

FOUR = b"\0" * 16
# What a pickle does -> (the pickle, part of the reason).
PICKLES = {
    "an array of pointers": (
        call("numpy.ndarray", items(number(4)), call("numpy.dtype", text("O")), text(b"A" * 32)), "type O"),
    "an array of pointers in a set": (
        call("builtins.set", call("numpy.ndarray", items(number(4)), name("builtins.int"), text(b"A" * 32))),
        "name of a type"),
    "an array's state of pointers": (
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), items(number(0)), text(b"b"))
        + items(number(1), items(number(2)), call("numpy.dtype", text("O")), b"\x89", text(b"A" * 16)) + BUILD,
        "type O"),
    "an array of fewer bytes than it says": (
        call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), items(number(0)), text(b"b"))
        + items(number(1), items(number(10**9)), call("numpy.dtype", text("f8")), b"\x89", text(b"A")) + BUILD,
        "has 1 bytes"),
    "a record type": (call("numpy.dtype", MARK + items(text("a"), text("O")) + b"l"), "expected numbers"),
    "8 GB of zeros": (call("builtins.bytearray", number(8 * 10**9)), "makes bytes of a int"),
    "a command": (call("os.system", text("touch owned")), "os.system"),
    "evaluated text": (call("builtins.eval", text("1")), "builtins.eval"),
    "an attribute": (call("builtins.getattr", name("argparse.Namespace"), text("__init__")), "builtins.getattr"),
    "a member of a class": (b"\x8c\x08argparse\x8c\x12Namespace.__init__\x93", "Namespace.__init__"),
    "torch's own loader": (call("torch.serialization.load", text("/etc/passwd")), "torch.serialization.load"),
    "a name with control characters": (call("evil.\x1b]0;title\x07"), r"\\x1b"),
    "changed functions": (
        name("torch._utils._rebuild_tensor_v2") + entry("__defaults__", items(number(1))) + BUILD, "changes a Name"),
    "a changed number": (number(1) + entry("x", number(1)) + BUILD, "changes a int"),
    "a number that is called": (number(1) + EMPTY + REDUCE, "takes a int for a Name"),
    "an instance": (MARK + b"ios\nsystem\n", "INST"),
    "an object": (MARK + name("builtins.int") + b"o", "OBJ"),
    "the registry of extensions": (b"\x82\x01", "EXT1"),
    "an identity as text": (b"Pstorage\n", "PERSID"),
    "25,000,001 x 32 times one number": (tensor(4, (1, 25_000_001, 32), (0, 0, 0)), "lies beyond its 4 numbers"),
    "numbers beyond the storage": (tensor(4, (4,), (2,)), "lies beyond its 4 numbers"),
    "numbers behind the storage": (tensor(4, (1,), (1,), offset=4), "lies beyond its 4 numbers"),
    "numbers before the storage": (tensor(4, (4,), (1,), offset=-1), "is -1"),
    "a negative stride": (tensor(4, (4,), (-1,)), "is -1"),
    "more numbers than there are addresses": (tensor(4, (2**40, 2**40), (1, 1)), "lies beyond"),
    "a storage of 4 TB": (tensor(10**12, (10**12,), (1,)), "names 1000000000000 numbers where it has 16 bytes"),
    "a storage that is not there": (tensor(4, (4,), (1,), key="../../etc"), "where it has 0 bytes"),
    "a storage of objects": (tensor(4, (4,), (1,), kind="builtins.list"), "kind that is not known"),
    "a storage of another length": (tensor(4, (4,), (1,), kind="torch.DoubleStorage"), "where it has 16 bytes"),
    "no storage": (
        items(text("module"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4)) + b"Q", "not known"),
    "a place in memory of 4 billion": (b"]r\xff\xff\xff\xff", "holds a list"),
    "a key that takes for ever to hash": (
        b"}" + doubled(60, b"h\0h\0\x86").replace(b"]q\0", b")q\0", 1) + number(1) + b"s", "key of a dictionary"),
    "a device that takes for ever to print": (call("torch.device", doubled(60)), "no text"),
    "a path that takes for ever to print": (call("pathlib.PosixPath", doubled(60)), "no text"),
    "1 million levels": (b"]" * 10**6 + b"a" * (10**6 - 1), "too many objects"),
    "100,000 levels": (b"]" * 10**5 + b"a" * (10**5 - 1), "holds a list"),
    "a million sets": (b"\x8f" * 10**6, "too many objects"),
    "a text named again and again": (
        text("x" * 10**5) + b"q\x01" + (name("_codecs.encode") + b"h\x01\x85R") * 10**4, "too many objects"),
    "a list named again and again": (
        MARK + number(1) * 10**5 + b"lq\x01" + (name("builtins.set") + b"h\x01\x85R") * 10**4, "too many objects"),
    "a digest of what stands twice and twice": (
        entry("a", doubled(60)) + text(DIGEST) + text("0" * 64) + b"s", "too many times"),
    "a digest of 100,000 levels": (
        entry("a", b"]" * 10**5 + b"a" * (10**5 - 1)) + text(DIGEST) + text("0" * 64) + b"s", "nested too deeply"),
    "more taken than there is": (b"e", "damaged"),
    "nothing": (b"", "damaged"),
}  # fmt: skip


def whole(path, **options):
    """A file that loads, to be damaged."""
    torch.save({"w": torch.arange(1000.0)}, path, **options)
    return bytearray(path.read_bytes())


def compressed(path):
    zip_file(path, tensor(2**20, (2**20,), (1,)), zipfile.ZIP_DEFLATED, _0=bytes(4 * 2**20))


def flipped(path):
    content = whole(path)
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2003] ^= 0x40
    path.write_bytes(content)


def flipped_pickle(path):
    content = whole(path)
    content[content.index(b"FloatStorage")] ^= 1
    path.write_bytes(content)


def flipped_version(path):
    content = whole(path)
    content[content.index(b"little")] ^= 1
    path.write_bytes(content)


def longer(path):
    path.write_bytes(whole(path) + b"more")


def longer_legacy(path):
    path.write_bytes(whole(path, _use_new_zipfile_serialization=False) + b"more")


def shorter_legacy(path):
    path.write_bytes(whole(path, _use_new_zipfile_serialization=False)[:-4])


def legacy_of_4_tb(path):
    content = whole(path, _use_new_zipfile_serialization=False)
    path.write_bytes(content.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"))


def many_records(path):
    """An index of 5 MB, as its end says."""
    content = bytearray(zip_file(path, EMPTY).read_bytes())
    content[-10:-6] = struct.pack("<L", 5 * 2**20)
    path.write_bytes(content)


def one_record_many_times(path):
    """Entries of the index that all name the same bytes."""
    zip_file(path, EMPTY, _0=bytes(2**20))
    file = io.BytesIO(path.read_bytes())
    archive = zipfile.ZipFile(file, "a")
    one = archive.getinfo("x/data/0")
    for index in range(1000):
        info = zipfile.ZipInfo(f"x/data/0{index}")
        info.header_offset, info.CRC = one.header_offset, one.CRC
        info.file_size = info.compress_size = one.file_size
        archive.filelist.append(info)
    archive._didModify = True
    archive.close()
    path.write_bytes(file.getvalue())


def program(path):
    zip_file(path, EMPTY)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"")


def big_endian(path):
    path.write_bytes(whole(path).replace(b"little", b"big\0\0\0"))


FILES = {
    compressed: "compressed",
    flipped: "checksum of its record .*data/0",
    flipped_pickle: "checksum of its record .*data.pkl",
    flipped_version: "checksum of its record .*byteorder",
    longer: "bytes behind its end",
    longer_legacy: "bytes behind its end",
    shorter_legacy: "cut",
    legacy_of_4_tb: "cut",
    many_records: "more records than a checkpoint",
    one_record_many_times: "larger than the file",
    program: "TorchScript",
}
READ = """
import json, sys, time
import torch
from rmeeto.reader import Unreadable, read
for path in json.load(open(sys.argv[1])):
    start = time.process_time()
    try:
        outcome = f"it holds a {type(read(path)).__name__}"
    except Unreadable as error:
        outcome = str(error)
    print(json.dumps([outcome, time.process_time() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the reader says to each file, and how many seconds of the processor it took."""
    folder, paths = tmp_path_factory.mktemp("hostile"), {}
    for index, (title, (pickle, _)) in enumerate(PICKLES.items()):
        paths[title] = zip_file(folder / f"{index}.pth", pickle, _0=FOUR)
    for make in FILES:
        paths[make] = folder / f"{make.__name__}.pth"
        make(paths[make])
    (folder / "paths").write_text(json.dumps([str(path) for path in paths.values()]))
    lines = run_limited(READ, folder / "paths").splitlines()
    assert not (ROOT / "owned").exists()
    return dict(zip(paths, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("title", PICKLES)
def test_a_pickle_that_means_harm_is_refused(outcomes, title):
    reason, seconds = outcomes[title]
    assert PICKLES[title][1].replace("\\\\", "\\") in reason
    assert "\n" not in reason and reason.isprintable()
    assert seconds < 5


@pytest.mark.parametrize("make", FILES)
def test_a_file_that_is_damaged_or_made_by_hand_is_refused(outcomes, make):

    reason, seconds = outcomes[make]
    assert re.search(FILES[make], reason)
    assert seconds < 5
