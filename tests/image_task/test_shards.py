"""Tar files: damaged, hostile and odd ones are one clear error, or their left-out files are counted."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pytest

from image_task.config import DataConfig
from image_task.datasets import load_sources
from rmeeto.errors import UserError
from tests.limits import run_limited


def _tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _load(folder, kind="wds", train=False, **settings):
    return load_sources(DataConfig(data_set=kind, data_path=str(folder), **settings), seed=0, train=train)


def _refused(folder, message, kind="wds", **settings):
    with pytest.raises(UserError, match=message) as caught:
        _load(folder, kind, **settings)
    assert len(str(caught.value)) < 300 + len(str(folder))


@pytest.fixture
def samples(jpeg):
    """samples(n) -> members 0.jpg, 0.cls, ... of n samples, class number i % 2."""
    return lambda n: [pair for i in range(n) for pair in ((f"{i}.jpg", jpeg(i)), (f"{i}.cls", str(i % 2).encode()))]


# damage


@pytest.mark.parametrize("kind", ["wds", "tar"])
@pytest.mark.parametrize(
    "size", [b"\x80" + bytes(1) + b"\x01" + bytes(9), b"\xff" * 12, b"\xff" * 11 + b"\0", b"77777777777\0"]
)
@pytest.mark.parametrize("member", [0, 3])
def test_a_size_that_cannot_be_is_refused(tmp_path, samples, kind, size, member):
    path = _tar(tmp_path / "val.tar", *(("ant/" * (kind == "tar") + name, data) for name, data in samples(4)))
    with tarfile.open(path) as tar:
        at = tar.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[at + 124 : at + 136] = size  # 2 ** 88, -1, -256 and 8 GiB, where base 256 is marked by its first bit
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    _refused(tmp_path, "no intact uncompressed tar file", kind)


@pytest.mark.parametrize("kind", ["wds", "tar"])
def test_a_tar_file_that_is_cut_anywhere_is_refused(tmp_path, samples, kind):
    path = _tar(tmp_path / "val.tar", *(("ant/" * (kind == "tar") + name, data) for name, data in samples(4)))
    data = path.read_bytes()
    assert len(_load(tmp_path, kind)[1]) == 4
    with tarfile.open(path) as tar:
        borders = [at for member in tar for at in (member.offset, member.offset_data, member.offset_data + 100)]
    for at in [0, *borders[1:], tar.offset]:
        path.write_bytes(data[:at])
        _refused(tmp_path, "no intact uncompressed tar file", kind)


def test_a_damaged_header_in_the_middle_is_refused(tmp_path, samples):
    path = _tar(tmp_path / "val.tar", *samples(4))
    with tarfile.open(path) as tar:
        at = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    for hole in (bytes(512), b"x" * 512):
        data[at : at + 512] = hole
        path.write_bytes(data)
        _refused(tmp_path, "no intact uncompressed tar file .*(damaged|more follows)")


def test_two_tar_files_in_one_are_refused(tmp_path, samples):
    path = _tar(tmp_path / "val.tar", *samples(2))
    path.write_bytes(path.read_bytes() * 2)
    _refused(tmp_path, "more follows behind its end")


def test_what_is_no_regular_tar_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "val.tar")
    code = (
        "import sys; from image_task.config import DataConfig; from image_task.datasets import load_sources\n"
        "for kind in ('wds', 'tar'):\n"
        "    try: load_sources(DataConfig(data_set=kind, data_path=sys.argv[1]), seed=0, train=False)\n"
        "    except ValueError as error: print(type(error).__name__, error)\n"
    )
    said = run_limited(code, tmp_path).splitlines()
    assert len(said) == 2 and all(line.startswith("UserError") and "regular file" in line for line in said)


def test_nested_and_chained_headers_end_in_an_error_and_not_in_the_interpreter(tmp_path):
    info, content = tarfile.TarInfo("x.tar"), b""
    for _ in range(1050):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        content = file.getvalue()[: -(-len(content) // 512) * 512 + 512 + 1024]
    (tmp_path / "val.tar").write_bytes(content)
    _refused(tmp_path, "no intact uncompressed tar file", "tar")
    chain = tarfile.TarInfo("p")
    chain.type = tarfile.XHDTYPE
    (tmp_path / "val.tar").write_bytes(chain.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))
    _refused(tmp_path, "no intact uncompressed tar file", "tar")


# what is in them


@pytest.mark.parametrize(
    "label", [b"cat", b"0.0", b"", b"-1", b"1" * 5000, b" " * 5000 + b"1", b"\xff\xfe0\0", "２".encode()]
)
def test_a_label_that_is_no_class_number_is_refused(tmp_path, jpeg, label):
    _tar(tmp_path / "val.tar", ("0.jpg", jpeg(0)), ("0.cls", label))
    _refused(tmp_path, r"val.tar: 0.cls holds '.*'; expected a class number, from 0 on")


def test_spaces_around_a_class_number_do_no_harm(tmp_path, jpeg):
    _tar(tmp_path / "val.tar", ("0.jpg", jpeg(0)), ("0.cls", b" 1 \n"), ("1.JPG", jpeg(1)), ("1.CLS", b"0"))
    assert _load(tmp_path)[1].targets.tolist() == [1, 0]


@pytest.mark.parametrize("label", [b"1700000000", b"9" * 31])
def test_a_time_or_an_id_as_class_number_is_refused(tmp_path, jpeg, label):
    _tar(tmp_path / "val.tar", ("0.jpg", jpeg(0)), ("0.cls", label))
    _refused(
        tmp_path,
        f"class number {label.decode()} among 1 samples; expected numbers from 0 on, fewer than 100,000",
    )


def test_keys_may_hold_dots(tmp_path, jpeg):
    keys = ("0001", "n02.0002", "v1.2.3", "a.b/0004")
    _tar(tmp_path / "val.tar", *((f"{k}.{e}", d) for k in keys for e, d in (("jpg", jpeg(0)), ("cls", b"1"))))
    source = _load(tmp_path)[1]
    assert [source.name(index).rpartition(":")[2] for index in range(4)] == list(keys)


def test_what_is_not_the_image_of_a_key_is_left_out_and_counted(tmp_path, jpeg, caplog):
    members = [(name, jpeg(0)) for name in ("0.png", "0.jpg", "0.mask.png", "1.jpg", "__MACOSX/._1.jpg", "._0.cls")]
    members += [("0.cls", b"0"), ("1.cls", b"1"), ("2.cls", b"1"), ("2.heic", b"x"), ("0.json", b"{}")]
    _tar(tmp_path / "val.tar", *members)
    source = _load(tmp_path)[1]
    assert [source.name(index)[-2:] for index in range(2)] == [":0", ":1"] and len(source) == 2
    assert source.places[0, 1] == _offset(tmp_path / "val.tar", "0.jpg")
    said = caplog.text
    assert "2 files are left out (not the image of their key), such as" in said and "val.tar:0.png" in said
    assert "1 files are left out (a class number without an image of a known ending), such as" in said
    assert "val.tar:2.heic" in said


def _offset(path, name):
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset_data


def test_a_key_that_occurs_twice_is_refused(tmp_path, jpeg):
    _tar(tmp_path / "val.tar", ("a.jpg", jpeg(0)), ("a.cls", b"0"), ("a.jpg", jpeg(1)))
    _refused(tmp_path, "a.jpg occurs twice")
    _tar(tmp_path / "val.tar", ("a.jpg", jpeg(0)), ("a.cls", b"0"), ("a.cls", b"1"))
    _refused(tmp_path, "a.cls occurs twice")


def test_hidden_members_and_unknown_endings_of_class_folders_are_left_out(tmp_path, jpeg, caplog):
    names = (
        "cat/0.jpg",
        "./dog/0.webp",
        "cat/._0.jpg",
        "__MACOSX/cat/0.jpg",
        ".x/0.jpg",
        "cat/a.heic",
        "cat/n.txt",
    )
    _tar(tmp_path / "val.tar", *((name, jpeg(0)) for name in names))
    source = _load(tmp_path, "tar")[1]
    assert source.classes == ["cat", "dog"] and len(source) == 2
    assert "2 files are left out (other endings), such as" in caplog.text and "cat/a.heic" in caplog.text


# _info.json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not as timm writes it"),
        (7, "not as timm writes it"),
        ({"splits": [1]}, "not as timm writes it"),
        ({"splits": {"val": 3}}, "val lists no tar files"),
        ({"splits": {"val": {}}}, "val lists no tar files"),
        ({"splits": {"val": {"filenames": []}}}, "val lists no tar files"),
        ({"splits": {"val": {"filenames": [1]}}}, "val lists no tar files"),
        ({"splits": {"val": {"filenames": "val.tar"}}}, "val lists no tar files"),
        ({"splits": {"val": {"filenames": ["val.tar", "gone.tar"]}}}, "1 of 2 tar files are not there, such as gone"),
        ("", "is missing or no JSON"),
        ("[" * 100_000, "is missing or no JSON"),
    ],
)  # fmt: skip
def test_an_info_file_that_lists_nothing_usable_is_refused(tmp_path, samples, content, message):
    _tar(tmp_path / "val.tar", *samples(2))
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "_info.json").write_text(text)
    _refused(tmp_path, message)


def test_an_info_file_without_the_split_leaves_the_names_to_tell(tmp_path, samples):
    _tar(tmp_path / "val.tar", *samples(2))
    for content in ({}, {"splits": {}}, {"splits": {"train": {"filenames": ["val.tar"]}}}):
        (tmp_path / "_info.json").write_text(json.dumps(content))
        assert len(_load(tmp_path)[1]) == 2


def test_a_shard_that_is_gone_later_makes_its_images_unreadable(tmp_path, samples):
    path = _tar(tmp_path / "val.tar", *samples(2))
    source = _load(tmp_path)[1]
    assert np.asarray(source.read(0)[0]).shape == (30, 40, 3)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises((OSError, ValueError)):
        source.read(1)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("name", ["1" * 50_000, "a/" * 500_000], ids=["digits", "folders"])
def test_a_header_that_would_take_for_ever_is_refused_at_once(tmp_path, form, name):
    """Python's own search in the first takes six seconds, and hours where it is ten times as long."""
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w", format=form) as tar:
            tar.addfile(tarfile.TarInfo(f"{name}.png"), io.BytesIO())
    began = time.process_time()
    with pytest.raises(UserError, match="is no intact uncompressed tar file") as caught:
        load_sources(DataConfig(data_set="tar", data_path=str(tmp_path)), seed=0)
    assert time.process_time() - began < 2 and len(str(caught.value)) < 1000
