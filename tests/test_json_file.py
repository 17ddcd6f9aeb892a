"""rmeeto/json_file.py: hostile and damaged JSON is one error, and quick."""

from __future__ import annotations

import json
import os

import pytest

from rmeeto.errors import UserError
from rmeeto.json_file import read_json, write_json, write_whole

HOSTILE = {
    "empty": b"",
    "cut": b'{"a": ',
    "nested": b"[" * 10**6,
    "nested and whole": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "nested a little": b"[" * 200 + b"]" * 200,
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "beyond a float": b'{"a": 1e999}',
    "many digits": b'{"a": 1' + b"0" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "half a surrogate pair": b'{"a": "\\ud800"}',
    "null": b"null",
    "a list": b"[1]",
    "a number": b"3",
    "a text": b'"x"',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_json_object_is_one_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="x.json cannot be read as JSON") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_file_that_is_too_large_or_no_file_is_one_error(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"a": "b" * 100}))
    os.mkfifo(tmp_path / "pipe.json")
    for path, reason in (
        (tmp_path / "x.json", "more than 50 bytes"),
        (tmp_path / "pipe.json", "no regular file"),
        (tmp_path, "directory"),
        (tmp_path / "none.json", "No such file"),
    ):
        with pytest.raises(UserError, match=reason):
            read_json(path, largest=50)


def test_what_is_written_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    write_json(tmp_path / "x.json", value)
    (tmp_path / "link.json").symlink_to("x.json")
    assert read_json(tmp_path / "link.json") == value
    (tmp_path / "list.json").write_text("[1, 2]")
    assert read_json(tmp_path / "list.json", list) == [1, 2]
    assert read_json(tmp_path / "list.json", None) == [1, 2]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "x.json.tmp").symlink_to("thesis")
    write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert read_json(tmp_path / "x.json") == {"a": 1} and not (tmp_path / "x.json").is_symlink()


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("inf")})
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_what_fails_to_be_written_leaves_the_old_file_and_no_piece(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
