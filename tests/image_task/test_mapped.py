"""Data sets of other code: torchvision's by name, one's own by the name of a function, and a part held out."""

from __future__ import annotations

import gzip
import inspect
import struct

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from image_task.config import DataConfig
from image_task.datasets import load_sources
from image_task.main import main
from image_task.torchvision_names import SETS, torchvision_name
from rmeeto.errors import UserError


@pytest.fixture
def fashion(tmp_path):
    """FashionMNIST's four files, of 40 and 20 random pictures."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">4i", 2051, count, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return tmp_path


def test_torchvision_reads_a_set_by_its_name(fashion):
    for name in ("FASHION", "FashionMNIST", "fashionmnist"):
        train, val = load_sources(DataConfig(data_set=name, data_path=str(fashion)), seed=0)
        assert (len(train), len(val)) == (40, 20) and train.classes[0] == "T-shirt/top"
        image, target = train.read(13)
        assert image.size == (28, 28) and image.mode == "RGB" and target == 3


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("MNIST", "MNIST"),
        ("svhn", "SVHN"),
        ("Flowers102", "Flowers102"),
        ("FakeData", None),
        ("VOCDetection", None),
        ("EuroSAT", None),  # one split
        ("HMDB51", None),  # videos
    ],
)
def test_which_names_torchvision_has(name, known):
    assert torchvision_name(name) == known


@pytest.mark.parametrize("name", SETS)
def test_torchvision_takes_the_arguments_of_both_splits(name):
    for arguments in SETS[name]:
        inspect.signature(getattr(datasets, name)).bind("root", **arguments)


def test_a_set_whose_classes_torchvision_does_not_name_has_numbers(tmp_path):
    for number in (0, 42):
        folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{number:05}"
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / "0.ppm")
    images = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    Image.new("RGB", (9, 9), (7, 0, 0)).save(images / "0.ppm")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;7\n")
    train, val = load_sources(DataConfig(data_set="GTSRB", data_path=str(tmp_path)), seed=0)
    assert len(train.classes) == 43 and [train.read(i)[1] for i in range(2)] == [0, 1] and val.read(0)[1] == 7


def test_one_error_says_where_files_go(fashion, tmp_path):
    (fashion / "FashionMNIST/raw/train-labels-idx1-ubyte").unlink()
    packed = fashion / "FashionMNIST/raw/train-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress(b"packed"))
    with pytest.raises(UserError, match=r"FashionMNIST/raw \(unpacked\).*--download") as caught:
        load_sources(DataConfig(data_set="FASHION", data_path=str(fashion)), seed=0)
    assert len(str(caught.value).splitlines()) == 2 and "\\n" not in str(caught.value)
    with pytest.raises(UserError, match="known are digits .*FASHION.*package.module:function"):
        load_sources(DataConfig(data_set="FASHIONS", data_path=str(fashion)), seed=0)


def test_a_part_of_the_training_images_is_held_out(fashion):
    config = DataConfig(data_set="FASHION", data_path=str(fashion), holdout=10)
    train, held = load_sources(config, seed=0)
    whole, _ = load_sources(DataConfig(data_set="FASHION", data_path=str(fashion)), seed=0)
    assert (len(train), len(held)) == (30, 10)
    seen = [np.asarray(part.read(i)[0]).tobytes() for part in (train, held) for i in range(len(part))]
    assert sorted(seen) == sorted(np.asarray(whole.read(i)[0]).tobytes() for i in range(40))
    none, again = load_sources(config, seed=7, train=False)
    assert none is None and again.indices.tolist() == held.indices.tolist()
    with pytest.raises(UserError, match="--holdout 40 of 40"):
        load_sources(DataConfig(data_set="FASHION", data_path=str(fashion), holdout=40), seed=0)


OWN = """
import numpy as np
from PIL import Image

class Stripes:
    classes = ["across", "down"]

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = Image.new("L", (16, 16))
        for at in range(0, 16, 4):
            image.paste(200, (0, at, 16, at + 2) if index % 2 else (at, 0, at + 2, 16))
        return image, index % 2

def load(config, split):
    return Stripes(32 if split == "train" else 8)

class Half(Stripes):
    # has all pictures and classes in memory, as torchvision's do, and gives half of them, each the other way round

    def __init__(self, part):
        super().__init__(len(part))
        self.part, self.targets = part, [index % 2 for index in range(40)]
        self.data = np.zeros((40, 16, 16, 3), np.uint8)

    def __getitem__(self, index):
        image, target = super().__getitem__(self.part[index])
        return image.rotate(90), 1 - target

def half(config, split):
    return Half(range(split == "val", 40, 2))

def named(config, split):
    found = Stripes(8)
    found.labels = ["across", "down"] * 4
    found.y = None
    return found

def odd(config, split):
    found = Stripes(8)
    found.classes = ["across"]
    return found

def twice(config, split):
    found = Stripes(8)
    found.classes = ["crane", "dog", "crane"]
    return found

def nothing(config, split):
    return 3
"""


def test_ones_own_set_is_a_function(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_stripes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    train, val = load_sources(DataConfig(data_set="own_stripes:load"), seed=0)
    assert (len(train), len(val), train.classes) == (32, 8, ["across", "down"])
    assert isinstance(train.read(1)[0], Image.Image) and train.read(1)[1] == 1
    flags = "--data_set own_stripes:load --model vim_nano_patch2_16 --epochs 1 --batch_size 8 --accumulation 1"
    assert main([*flags.split(), "--output_dir", str(tmp_path / "runs"), "--num_workers", "0"]) == 0
    assert "32 images to train, 8 to evaluate, 2 classes" in capsys.readouterr().out
    assert all(val.read(i)[1] == i % 2 for i in range(8))


def test_ones_own_set_is_asked_for_its_pictures_whatever_else_it_has(tmp_path, monkeypatch):
    (tmp_path / "own_stripes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    train, val = load_sources(DataConfig(data_set="own_stripes:half"), seed=0)
    assert (len(train), len(val)) == (20, 20)
    assert {train.read(i)[1] for i in range(20)} == {1} and {val.read(i)[1] for i in range(20)} == {0}
    assert np.asarray(train.read(0)[0]).any()  # its own picture, not what lies in `data`
    _, named = load_sources(DataConfig(data_set="own_stripes:named"), seed=0)
    assert [named.read(i)[1] for i in range(3)] == [0, 1, 0]
    _, turned = load_sources(DataConfig(data_set="own_stripes:named"), seed=0, labels=["down", "across"])
    assert [turned.read(i)[1] for i in range(3)] == [1, 0, 1] and turned.classes == ["down", "across"]
    _, odd = load_sources(DataConfig(data_set="own_stripes:odd"), seed=0)
    with pytest.raises(UserError, match="image 1 is of class 1; expected 0 to 0"):
        odd.read(1)
    for name, message in (
        ("own_stripes:nothing", "gave a int"),
        ("own_stripes:absent", "cannot be imported"),
        ("own_stripes:twice", "its classes 0 and 2 are both called 'crane'; give each a name of its own"),
    ):
        with pytest.raises(UserError, match=message):
            load_sources(DataConfig(data_set=name), seed=0)
