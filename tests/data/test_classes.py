"""Classes: one order, plausible numbers, and what is said of those without samples."""

import logging
import os

import pytest

from rmeeto.data.classes import (
    LeftOut,
    as_labelled,
    check_text,
    check_used,
    files_below,
    in_order,
    numbered,
    read_lines,
    subfolders,
)
from rmeeto.errors import UserError


def test_classes_are_in_natural_order_and_a_line_says_where_text_is_another(caplog):
    assert in_order(["n02", "n01", "n10"]) == ["n01", "n02", "n10"] and not caplog.text
    assert in_order(map(str, range(12))) == [str(number) for number in range(12)]
    assert "number 2 is 2, while torchvision sorts text and has 10 there" in caplog.text
    assert in_order(["Zebra", "apple", "a\x1b[2J"]) == ["a\x1b[2J", "apple", "Zebra"]
    assert "\x1b" not in caplog.text


def test_class_numbers_are_believed_up_to_many_or_up_to_the_number_of_samples(monkeypatch):
    assert numbered([0, 3], "x") == ["0", "1", "2", "3"] and numbered([], "x") == []
    assert len(numbered([99_999], "x")) == 100_000
    with pytest.raises(UserError, match="x: class number 100000 among 1 samples; expected numbers from 0 on"):
        numbered([100_000], "x")
    monkeypatch.setattr("rmeeto.data.classes.MANY", 2)
    assert len(numbered([0, 1, 2, 3], "x")) == 4


def test_classes_without_samples_and_single_classes_are_named(caplog):
    check_used([0, 1], ["a", "b"], "train")
    assert not caplog.text
    check_used([1, 3], ["a", "b", "c", "d"], "train")
    assert "train has no sample of 2 of 4 classes, such as a" in caplog.text
    check_used([0], ["a"], "train")
    assert "train has one class, a: every model is right on it" in caplog.text


def test_what_is_left_out_is_one_line_a_reason(caplog):
    left_out = LeftOut()
    for number in range(3):
        left_out.add(f"{number}\n.heic", "other endings")
    with caplog.at_level(logging.WARNING):
        left_out.say("data")
    assert [record.getMessage() for record in caplog.records] == [
        r"data: 3 files are left out (other endings), such as 0\n.heic"
    ]


def test_files_below_a_folder_are_each_found_once_without_hidden_ones(tmp_path):
    for name in (
        "b/2.jpg",
        "b/10.jpg",
        "a/1.jpg",
        "0.jpg",
        ".ipynb_checkpoints/3.jpg",
        "a/._1.jpg",
        "__MACOSX/a/1.jpg",
    ):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "4.jpg").touch()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "self").symlink_to(tmp_path / "root" / "a")
    found = [os.path.relpath(path, tmp_path / "root") for path in files_below(tmp_path / "root")]
    assert found == ["0.jpg", "a/1.jpg", "b/10.jpg", "b/2.jpg", "linked/4.jpg"]
    assert subfolders(tmp_path / "root") == ["a", "b", "linked"]


def test_links_between_two_folders_are_followed_once(tmp_path):
    for name, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
        (tmp_path / name / "x").symlink_to(tmp_path / other)
    found = [os.path.relpath(path, tmp_path) for path in files_below(tmp_path)]
    assert found == ["cat/cat.jpg", "cat/x/dog.jpg", "dog/dog.jpg", "dog/x/cat.jpg"]


def test_numbers_are_names_where_both_are_numbers(caplog):
    ten = [str(number) for number in range(10)]
    assert as_labelled(["3", "7"], ten, "val") == ten
    with pytest.raises(UserError, match="val has 1 classes that the weights do not know, such as 10"):
        as_labelled([str(number) for number in range(1, 11)], ten, "val")
    with pytest.raises(UserError, match="such as 0; they know 10, such as 1"):
        as_labelled(ten, [str(number) for number in range(1, 11)], "val")
    assert as_labelled(["0", "1"], ["ant", "bee"], "val") == ["0", "1"], "which nothing can be compared with"
    assert as_labelled(["ant", "bee"], ["0", "1"], "val") == ["ant", "bee"]


def test_a_class_whose_name_no_file_could_hold_is_refused():
    with pytest.raises(UserError, match=r"photos: the class caf\\udce9 has a name that is no UTF-8; rename it"):
        check_text(["dog", os.fsdecode(b"caf\xe9")], "photos")


def test_lines_end_where_a_line_ends_and_nowhere_else():
    assert read_lines("a\u2028b 1\r\nc\x0bd 2\n") == ["a\u2028b 1", "c\x0bd 2", ""]
