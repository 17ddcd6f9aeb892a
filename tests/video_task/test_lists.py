"""Lists and folders of videos, and what a user is told when they are not as expected."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from rmeeto.errors import UserError
from video_task.config import VideoDataConfig
from video_task.data.lists import load_videos


def _config(path, data_set="Kinetics_sparse", **settings):
    return VideoDataConfig(data_set=data_set, data_path=str(path), **settings)


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _pairs(videos, root):
    return [(os.path.relpath(videos.path(i), root), int(videos.targets[i])) for i in range(len(videos))]


def test_lists_of_kinetics_give_paths_and_numbered_classes(tmp_path):
    _touch(tmp_path, "clips/a b.mp4", "clips/c.mp4", "d.mp4")
    (tmp_path / "train.csv").write_text("clips/a b.mp4 0\n\nclips/c.mp4 2\n")
    (tmp_path / "val.csv").write_text(f"{tmp_path}/d.mp4 1\n")
    found = load_videos(_config(tmp_path))
    assert _pairs(found["train"], tmp_path) == [("clips/a b.mp4", 0), ("clips/c.mp4", 2)]
    assert _pairs(found["val"], tmp_path) == _pairs(found["test"], tmp_path) == [("d.mp4", 1)]
    assert all(videos.classes == ["0", "1", "2"] for videos in found.values())


def test_separator_and_prefix_are_those_of_the_command_line(tmp_path):
    _touch(tmp_path, "store/x,y.mp4")
    (tmp_path / "lists").mkdir()
    for name, label in (("train", 1), ("val", 0), ("test", 0)):
        (tmp_path / "lists" / f"{name}.csv").write_text(f"x,y.mp4,{label}\n")
    config = _config(tmp_path / "lists", split=",", prefix=str(tmp_path / "store"))
    assert _pairs(load_videos(config)["train"], tmp_path) == [("store/x,y.mp4", 1)]
    with pytest.raises(UserError, match=r"train.csv, line 1 is 'x,y.mp4,1'.*--split"):
        load_videos(replace(config, split=" "))


def test_lists_of_frame_folders_may_count_the_frames(tmp_path):
    _touch(tmp_path, "f/v1/1.png", "f/v 2/1.png")
    (tmp_path / "train.csv").write_text("f/v1 40 3\nf/v 2 17 0\n")
    (tmp_path / "val.csv").write_text("f/v1 3\n")
    assert _pairs(load_videos(_config(tmp_path))["train"], tmp_path) == [("f/v1", 3), ("f/v 2", 0)]


def test_frames_are_counted_even_where_the_first_folder_is_missing(tmp_path):
    (tmp_path / "train.csv").write_text("f/gone 9 1\nf/v1 40 3\nf/v 2 17 0\n")
    (tmp_path / "val.csv").write_text("f/v1 3\n")
    with pytest.raises(UserError, match=r"such as \S*f/gone; check --prefix"):
        load_videos(_config(tmp_path))
    _touch(tmp_path, "f/v1/1.png", "f/v 2/1.png")
    assert _pairs(load_videos(_config(tmp_path))["train"], tmp_path) == [
        ("f/gone", 1),
        ("f/v1", 3),
        ("f/v 2", 0),
    ]
    for number in (2, 12):
        lines = ["f/v1 40 3"] * 12
        lines[number - 1] = "f/v2 many 3"
        (tmp_path / "train.csv").write_text("\n".join(lines))
        expected = f"line {number} is 'f/v2 many 3'; expected <path> <frames> <class number>"
        with pytest.raises(UserError, match=expected):
            load_videos(_config(tmp_path))


def test_paths_may_end_in_a_number_that_counts_nothing(tmp_path):
    _touch(tmp_path, "f/v 1/1.png", "f/v 2/1.png")
    (tmp_path / "train.csv").write_text("f/v 1 3\nf/v 2 0\n")
    (tmp_path / "val.csv").write_text("f/v 2 3\n")
    assert _pairs(load_videos(_config(tmp_path))["train"], tmp_path) == [("f/v 1", 3), ("f/v 2", 0)]


@pytest.mark.parametrize("split", ["\t", r"\t"], ids=["tab", "as typed"])
def test_a_tab_may_separate(tmp_path, split):
    _touch(tmp_path, "a b.mp4")
    (tmp_path / "val.csv").write_text("a b.mp4\t4\n")
    found = load_videos(_config(tmp_path, split=split), train=False)
    assert _pairs(found["val"], tmp_path) == [("a b.mp4", 4)]
    (tmp_path / "val.csv").write_text("a b.mp4 4\n")
    with pytest.raises(UserError, match=r"'a b.mp4 4'; expected <path>\\t<class number>, see --split"):
        load_videos(_config(tmp_path, split=split), train=False)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    _touch(tmp_path, "Bow/v_1.avi")
    (tmp_path / "test.csv").write_text("Bow/v_1.avi 0\n", encoding="utf-8-sig")
    found = load_videos(_config(tmp_path), train=False)
    assert _pairs(found["test"], tmp_path) == [("Bow/v_1.avi", 0)]
    (tmp_path / "test.csv").unlink()
    (tmp_path / "classInd.txt").write_text("1 Bow\n", encoding="utf-8-sig")
    (tmp_path / "testlist01.txt").write_text("Bow/v_1.avi\n", encoding="utf-8-sig")
    found = load_videos(_config(tmp_path, "UCF101"), train=False)
    assert _pairs(found["test"], tmp_path) == [("Bow/v_1.avi", 0)]


def test_a_list_that_is_no_text_is_one_short_error(tmp_path):
    line = "caf\u00e9.mp4 0\n"
    for content, message in (
        (("a.mp4 0\n" * 1000 + line).encode("latin-1"), r"val\.csv, line 1001 is not UTF-8 text"),
        (line.encode("utf-16"), r"val\.csv, line 1 is not UTF-8 text"),
    ):
        (tmp_path / "val.csv").write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            load_videos(_config(tmp_path), train=False)
        assert len(str(caught.value)) < 100 + len(str(tmp_path))
    (tmp_path / "val.csv").unlink()
    (tmp_path / "val.csv").mkdir()
    with pytest.raises(UserError, match=r"val\.csv cannot be read \(not a regular file\)"):
        load_videos(_config(tmp_path), train=False)


def test_evaluation_needs_no_training_list_and_either_of_the_others(tmp_path):
    _touch(tmp_path, "a.mp4")
    (tmp_path / "test.csv").write_text("a.mp4 4\n")
    found = load_videos(_config(tmp_path), train=False, num_classes=400)
    assert set(found) == {"val", "test"} and len(found["val"].classes) == 400
    with pytest.raises(UserError, match=r"has no train\.csv"):
        load_videos(_config(tmp_path))
    with pytest.raises(UserError, match="lists class 4, but the classes are 0 to 2"):
        load_videos(_config(tmp_path), train=False, num_classes=3)


def test_official_lists_of_ucf101(tmp_path):
    _touch(tmp_path, "Bow/v_1.avi", "Cut/v_2.avi", "Cut/v_3.avi")
    (tmp_path / "classInd.txt").write_text("1 Bow\n2 Cut\n")
    (tmp_path / "trainlist02.txt").write_text("Bow/v_1.avi 1\nCut/v_2.avi 2\n")
    (tmp_path / "testlist02.txt").write_text("Cut/v_3.avi\n")
    found = load_videos(_config(tmp_path, "UCF101", fold=2))
    assert _pairs(found["train"], tmp_path) == [("Bow/v_1.avi", 0), ("Cut/v_2.avi", 1)]
    assert _pairs(found["test"], tmp_path) == [("Cut/v_3.avi", 1)]
    assert found["val"].classes == ["Bow", "Cut"]
    (tmp_path / "testlist02.txt").write_text("Dig/v_3.avi\n")
    with pytest.raises(UserError, match="val list of UCF101 is not as published"):
        load_videos(_config(tmp_path, "UCF101", fold=2))


def test_paths_of_ucf101_may_hold_spaces(tmp_path):
    _touch(tmp_path, "Bow/v 1 x.avi", "Long Cut/v_2.avi", "Long Cut/v 3.avi")
    (tmp_path / "classInd.txt").write_text("1 Bow\n2 Long Cut\n")
    (tmp_path / "trainlist01.txt").write_text("Bow/v 1 x.avi 1\nLong Cut/v_2.avi 2 \n")
    (tmp_path / "testlist01.txt").write_text("Long Cut/v 3.avi\n")
    found = load_videos(_config(tmp_path, "UCF101"))
    assert _pairs(found["train"], tmp_path) == [("Bow/v 1 x.avi", 0), ("Long Cut/v_2.avi", 1)]
    assert _pairs(found["test"], tmp_path) == [("Long Cut/v 3.avi", 1)]


def test_official_lists_of_hmdb51(tmp_path):
    _touch(tmp_path, "videos/wave/a.avi", "videos/run/b.avi", "videos/run/c d.avi")
    (tmp_path / "wave_test_split1.txt").write_text("a.avi 1 \n")
    (tmp_path / "run_test_split1.txt").write_text("b.avi 2 \nc d.avi 1 \ne.avi 0 \n")
    found = load_videos(_config(tmp_path, "HMDB51", prefix=str(tmp_path / "videos")))
    assert _pairs(found["train"], tmp_path) == [("videos/run/c d.avi", 0), ("videos/wave/a.avi", 1)]
    assert _pairs(found["val"], tmp_path) == [("videos/run/b.avi", 0)]
    assert found["val"].classes == ["run", "wave"]


@pytest.mark.parametrize("ending", [".webm", ".mp4", "/0001.png"])
def test_official_lists_of_something_something(tmp_path, ending):
    _touch(tmp_path, f"7{ending}", f"8{ending}")
    labels = {"Holding something": "1", "Pushing something left": "0"}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    for split, number, template in (
        ("train", 7, "Holding [something]"),
        ("validation", 8, "Pushing [something] left"),
    ):
        clips = [{"id": str(number), "template": template, "label": "..."}]
        (tmp_path / f"something-something-v2-{split}.json").write_text(json.dumps(clips))
    found = load_videos(_config(tmp_path, "SSV2"))
    suffix = "" if ending.startswith("/") else ending
    assert _pairs(found["train"], tmp_path) == [(f"7{suffix}", 1)]
    assert _pairs(found["val"], tmp_path) == [(f"8{suffix}", 0)]
    assert found["val"].classes == ["Pushing something left", "Holding something"]


@pytest.mark.parametrize(
    "labels", ['{"A x": 8, "B x": 1}', '{"A x": 0, "B x": 0}', '{"A x": -1, "B x": 0}', "[1]", "[" * 10**5]
)
def test_labels_of_ssv2_are_numbered_from_0_on_each_once(tmp_path, labels):
    _touch(tmp_path, "7.webm")
    (tmp_path / "labels.json").write_text(labels)
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text('[{"id": "7", "template": "A [x]"}]')
    with pytest.raises(UserError, match="not as published"):
        load_videos(_config(tmp_path, "SSV2"))


def test_a_list_that_lists_nothing_and_a_name_that_no_disk_takes_are_one_error(tmp_path):
    (tmp_path / "a_test_split1.txt").write_text("x.mp4 0\n")  # in neither split
    with pytest.raises(UserError, match="lists no video"):
        load_videos(_config(tmp_path, "HMDB51"))
    _touch(tmp_path, "a.mp4")
    (tmp_path / "train.csv").write_text(f"a.mp4 16 0\n{'b' * 300} 16 0\n")
    with pytest.raises(UserError, match="not as published.*File name too long"):
        load_videos(_config(tmp_path, "Kinetics"))
    (tmp_path / "train.csv").write_text("a.mp4 0\nb\0 0\n")
    with pytest.raises(UserError, match="line 2 is"):
        load_videos(_config(tmp_path, "Kinetics"))


def test_lists_replace_the_official_ones_of_any_data_set(tmp_path):
    _touch(tmp_path, "a.avi")
    (tmp_path / "val.csv").write_text("a.avi 5\n")
    for name in ("UCF101", "HMDB51", "SSV2", "Kinetics"):
        assert load_videos(_config(tmp_path, name), train=False)["val"].targets.tolist() == [5]


def test_class_folders_hold_video_files_and_frame_folders(tmp_path):
    _touch(
        tmp_path,
        "train/b/x.MP4",
        "train/b/readme.txt",
        "train/a/y.webm",
        "validation/a/z.avi",
        "validation/b/w.mkv",
    )
    (tmp_path / "train/a/frames").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train/a/frames/1.jpg")
    found = load_videos(_config(tmp_path, "folder"))
    assert _pairs(found["train"], tmp_path) == [
        ("train/a/frames", 0),
        ("train/a/y.webm", 0),
        ("train/b/x.MP4", 1),
    ]
    assert _pairs(found["val"], tmp_path) == _pairs(found["test"], tmp_path)
    assert found["val"].classes == ["a", "b"]


def test_user_errors_say_what_to_do(tmp_path):
    def refused(match, data_set="Kinetics_sparse", **settings):
        with pytest.raises(UserError, match=match) as caught:
            load_videos(_config(tmp_path, data_set, **settings))
        assert str(caught.value).count("\n") <= 1

    refused("known are Kinetics, .*folder", "Moments")
    with pytest.raises(UserError, match="is no folder"):
        load_videos(_config(tmp_path / "absent"))
    refused("has no train.csv, val.csv or test.csv")
    refused(r"has no classInd\.txt|has no trainlist01\.txt", "UCF101")
    refused("_test_split3", "HMDB51", fold=3)
    refused("has no something-something-v2-labels.json", "SSV2")
    refused("has no train; folder", "folder")
    (tmp_path / "train").mkdir()
    refused("holds no class folders", "folder")
    (tmp_path / "train" / "a").mkdir()
    refused("a holds no video", "folder")
    _touch(tmp_path, "train/a/1.mp4", "val/a/1.mp4", "val/b/1.mp4")
    refused("val has 1 classes that are not among the 1 of train: b. Move", "folder")
    (tmp_path / "train.csv").write_text("\n")
    refused("lists no video")
    (tmp_path / "train.csv").write_text("gone.mp4 0\n")
    refused("gone.mp4; check --prefix")
    (tmp_path / "train.csv").write_text("train/a/1.mp4 cat\n")
    refused("line 1 is 'train/a/1.mp4 cat'; expected <path> <class number>")


def test_class_folders_are_in_natural_order_and_without_hidden_ones(tmp_path, caplog):
    for split in ("train", "val"):
        _touch(tmp_path / split, *(f"{number}/x.mp4" for number in range(12)), "3/._y.mp4", ".cache/z.mp4")
        (tmp_path / split / "4" / ".thumbnails").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "4" / ".thumbnails" / "1.jpg")
    found = load_videos(_config(tmp_path, "folder"))
    for videos in found.values():
        assert videos.classes == [str(number) for number in range(12)] and len(videos) == 12
        assert all(videos.path(i).endswith(f"/{videos.targets[i]}/x.mp4") for i in range(12))
    assert "while torchvision sorts text and has 10 there" in caplog.text


def test_endings_of_cameras_are_read_and_what_is_left_out_is_counted(tmp_path, caplog):
    names = ("1.MTS", "2.m2ts", "3.vob", "4.divx", "5.mkv")
    for split in ("train", "val"):
        _touch(tmp_path / split / "a", *names, "notes.txt", "deeper/6.mp4")
    assert len(load_videos(_config(tmp_path, "folder"))["train"]) == 5
    assert "2 files are left out (neither a video of a known ending nor a folder of images), such as" in caplog.text
    assert "every model is right on it" in caplog.text


@pytest.mark.parametrize("train", [True, False])
def test_an_evaluation_split_may_lack_classes_of_the_training_split(tmp_path, train, caplog):
    _touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "train/c/1.mp4", "val/a/1.mp4", "val/c/1.mp4")
    found = load_videos(_config(tmp_path, "folder"), train=train)
    assert found["val"].classes == ["a", "b", "c"] and found["val"].targets.tolist() == [0, 2]
    assert "val has no sample of 1 of 3 classes, such as b" in caplog.text


def test_paths_in_quotes_stand_for_those_without_where_they_exist(tmp_path):
    _touch(tmp_path, "x, y.mp4", 'say "hi".mp4', '"kept".mp4', "plain.mp4")
    (tmp_path / "val.csv").write_text('"x, y.mp4",1\n"say ""hi"".mp4",0\n"kept".mp4,2\nplain.mp4,3\n')
    found = load_videos(_config(tmp_path, split=","), train=False)
    expected = [("x, y.mp4", 1), ('say "hi".mp4', 0), ('"kept".mp4', 2), ("plain.mp4", 3)]
    assert _pairs(found["val"], tmp_path) == expected


def test_what_writers_put_around_fields_is_no_part_of_them(tmp_path):
    _touch(tmp_path, "a.mp4", "b.mp4", "f/1.png", "f/2.png")
    for text, expected in (
        ('"a.mp4","1"\n"b.mp4","0"\n', [("a.mp4", 1), ("b.mp4", 0)]),  # csv.QUOTE_ALL
        ("a.mp4 , 1\nb.mp4 ,0\n", [("a.mp4", 1), ("b.mp4", 0)]),
        ('"f","2","1"\n"f","2","0"\n', [("f", 1), ("f", 0)]),
    ):
        (tmp_path / "val.csv").write_text(text)
        assert _pairs(load_videos(_config(tmp_path, split=","), train=False)["val"], tmp_path) == expected
    for text in ('a.mp4,"1\n', 'a.mp4,""\n', 'a.mp4,"one"\n', "a.mp4,'1'\n"):
        (tmp_path / "val.csv").write_text(text)
        with pytest.raises(UserError, match="line 1 is .*; expected <path>,<class number>, see --split"):
            load_videos(_config(tmp_path, split=","), train=False)


def test_a_line_ends_where_it_ends_and_not_within_a_name(tmp_path):
    _touch(tmp_path, "a\u2028b\x0bc\x85d.mp4", "e.mp4")
    (tmp_path / "val.csv").write_bytes("a\u2028b\x0bc\x85d.mp4 1\r\ne.mp4 0\r\n".encode())
    found = load_videos(_config(tmp_path), train=False)
    assert _pairs(found["val"], tmp_path) == [("a\u2028b\x0bc\x85d.mp4", 1), ("e.mp4", 0)]


def test_times_and_ids_as_class_numbers_are_refused(tmp_path):
    _touch(tmp_path, "a.mp4")
    for label, message in (
        ("1700000000", "class number 1700000000 among 4"),
        ("9" * 5000, "9... is no class number"),
    ):
        (tmp_path / "val.csv").write_text(f"a.mp4 0\na.mp4 {label}\n")
        with pytest.raises(UserError, match=message):
            load_videos(_config(tmp_path), train=False)


def test_numbers_that_are_no_numbers_of_frames_are_named(tmp_path, caplog):
    _touch(tmp_path, "f/1.png", "f/2.png", "g.mp4")
    (tmp_path / "val.csv").write_text("f 2 1\nf 300 0\ng.mp4 3 5\n")
    assert load_videos(_config(tmp_path), train=False)["val"].targets.tolist() == [1, 0, 5]
    assert "line 2 says 300 frames, the folder has 2" in caplog.text and "line 1" not in caplog.text
    assert "line 3: of two numbers behind a video the last one is its class" in caplog.text


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "val.csv")
    with pytest.raises(UserError, match=r"val.csv cannot be read \(not a regular file\)"):
        load_videos(_config(tmp_path), train=False)
