"""Class folders: the same files are the same classes for every loader, and what is said of what is left out."""

import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from image_task.config import DataConfig
from image_task.data import build_data
from image_task.datasets import load_sources
from rmeeto.errors import UserError


def _config(path, data_set="IMNET", **settings):
    return DataConfig(data_set=data_set, data_path=str(path), batch_size=1, num_workers=0, **settings)


def _load(path, data_set="IMNET", train=True, **settings):
    return load_sources(_config(path, data_set, **settings), seed=0, train=train)


@pytest.fixture
def numbered(tmp_path):
    """Classes 0 to 11 of one image each, of that brightness, as folders and as tar files."""
    for split in ("train", "val"):
        for number in range(12):
            (tmp_path / split / str(number)).mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / split / str(number) / "x.png")
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(tmp_path / split, ".")
    return tmp_path


@pytest.mark.parametrize("data_set", ["IMNET", "folder", "tar"])
def test_the_same_files_are_the_same_classes_for_every_loader(numbered, data_set, caplog):
    for source in _load(numbered, data_set):
        assert source.classes == [str(number) for number in range(12)]
        for index in range(12):
            image, target = source.read(index)
            assert image.getpixel((0, 0))[0] == 20 * target
    assert "while torchvision sorts text and has 10 there" in caplog.text


def test_hidden_folders_and_files_are_no_data(folder, caplog):
    for split in ("train", "val"):
        shutil.copytree(folder / split / "ant", folder / split / ".ipynb_checkpoints")
        shutil.copytree(folder / split / "ant", folder / split / "bee" / "__MACOSX")
        shutil.copy(folder / split / "ant" / "00.jpg", folder / split / "ant" / "._00.jpg")
    for data_set in ("IMNET", "folder"):
        train, val = _load(folder, data_set)
        assert train.classes == val.classes == ["ant", "bee"] and (len(train), len(val)) == (24, 10)
    assert not caplog.text


def test_endings_are_the_same_for_every_loader_and_others_are_counted(tmp_path, caplog):
    endings = ("jpg", "JPEG", "jfif", "png", "gif", "webp", "bmp", "tif", "ppm", "avif", "jp2")
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for ending in endings:
            Image.new("RGB", (16, 16), "red").save(tmp_path / split / "a" / f"x.{ending}")
        (tmp_path / split / "a" / "x.heic").touch()
        (tmp_path / split / "a" / "notes.txt").touch()
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(tmp_path / split, ".")
    for data_set in ("IMNET", "folder", "tar"):
        caplog.clear()
        train, _ = _load(tmp_path, data_set)
        assert len(train) == len(endings)
        assert all(np.asarray(train.read(index)[0])[4, 4, 0] > 230 for index in range(len(endings)))
        assert caplog.text.count("2 files are left out (other endings), such as") == 2
        assert "every model is right on it" in caplog.text


@pytest.mark.parametrize("data_set", ["IMNET", "folder"])
def test_a_flat_folder_has_no_classes(folder, data_set):
    for path in list((folder / "val").rglob("*.jpg")):
        path.rename(folder / "val" / f"{path.parent.name}{path.name}")
    for name in ("ant", "bee"):
        (folder / "val" / name).rmdir()
    with pytest.raises(UserError, match="val holds no class folders; expected"):
        _load(folder, data_set, train=False)


def test_images_outside_the_class_folders_are_left_out_and_counted(folder, caplog):
    (folder / "val" / "ant" / "00.jpg").rename(folder / "val" / "00.jpg")
    assert len(_load(folder, "folder")[1]) == 9
    assert "1 files are left out (in no class folder), such as" in caplog.text


@pytest.mark.parametrize("name", ["validation", "valid", "eval", "evaluation", "test"])
@pytest.mark.parametrize("data_set", ["IMNET", "folder"])
def test_the_evaluation_split_has_all_usual_names(folder, name, data_set):
    (folder / "val").rename(folder / name)
    assert len(_load(folder, data_set)[1]) == 10


# classes that a split lacks


@pytest.mark.parametrize("data_set", ["IMNET", "folder", "tar"])
@pytest.mark.parametrize("train", [True, False])
def test_an_evaluation_split_may_lack_classes_of_the_training_split(numbered, data_set, train, caplog):
    shutil.rmtree(numbered / "val" / "3")
    with tarfile.open(numbered / "val.tar", "w") as tar:
        tar.add(numbered / "val", ".")
    val = _load(numbered, data_set, train)[1]
    if data_set == "tar" and not train:  # a large tar file is not read for its classes alone
        assert len(val.classes) == 11
        return
    assert val.classes == [str(number) for number in range(12)]
    assert sorted(val.targets.tolist()) == [0, 1, 2, *range(4, 12)]
    assert "has no sample of 1 of 12 classes, such as 3" in caplog.text


@pytest.mark.parametrize("data_set", ["IMNET", "tar"])
def test_a_class_map_numbers_the_classes(numbered, data_set):
    names = [str(number) for number in range(20, -1, -1)]
    (numbered / "classes.txt").write_text("\n".join(names) + "\n")
    settings = {"class_map": str(numbered / "classes.txt")}
    shutil.rmtree(numbered / "train")
    source = _load(numbered, data_set, train=False, **settings)[1]
    assert source.classes == names
    for index in range(12):
        image, target = source.read(index)
        assert image.getpixel((0, 0))[0] == 20 * int(names[target])
    data = build_data(_config(numbered, data_set, **settings), img_size=8, rank=0, world_size=1, seed=0, train=False)
    assert data.num_classes == 21 and sum(len(targets) for _, targets in data.eval_batches()) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n", "1 classes .*not among the 1 .*: bee"),
        ("ant\nant", "a class twice"),
        ("a\n\nb", "an empty line"),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(folder, text, message):
    (folder / "map.txt").write_text(text)
    config = _config(folder, class_map=str(folder / "map.txt"))
    with pytest.raises(UserError, match=message):
        load_sources(config, seed=0)
    with pytest.raises(UserError, match="--class_map .*gone.txt cannot be read"):
        load_sources(replace(config, class_map=str(folder / "gone.txt")), seed=0)


def test_names_are_shown_escaped(folder, caplog):
    (folder / "val" / "ant" / "\x1b[2J.heic").touch()
    _load(folder)
    assert "\x1b" not in caplog.text and r"\x1b[2J.heic" in caplog.text
