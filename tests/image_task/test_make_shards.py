"""Shards made of a folder: the same pictures and classes, written whole or not at all, damage named."""

import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_task import shards
from image_task.config import DataConfig
from image_task.datasets import load_sources
from image_task.tars import save_index
from rmeeto.errors import UserError
from rmeeto.lock import lock
from tests import forked

ROOT = Path(__file__).resolve().parents[2]


def _load(path, kind, **settings):
    return load_sources(DataConfig(data_set=kind, data_path=str(path), **settings), seed=0)


def _pictures(source):
    """Of each picture: its class, content and name."""
    return sorted(
        (source.classes[source.targets[index]], source.open(index)[0].data, _name(source, index))
        for index in range(len(source))
    )


def _name(source, index):
    return "/".join(re.split("[/:]", source.name(index))[-2:])


@pytest.fixture
def made(folder, tmp_path_factory):
    """Shards of four pictures of the folder."""
    output = tmp_path_factory.mktemp("made") / "shards"
    assert shards.main([str(folder), "--output", str(output), "--size", "4", "--num_workers", "0"]) == 0
    return output


# making


@pytest.mark.parametrize("workers", ["0", "2"])
def test_shards_hold_the_pictures_and_classes_of_the_folder(folder, tmp_path, workers, capsys):
    (folder / "train" / "ant" / "deeper").mkdir()
    shutil.move(folder / "train" / "ant" / "03.jpg", folder / "train" / "ant" / "deeper" / "03.jpg")
    (folder / "train" / "bee" / "ü ?.png").write_bytes((folder / "train" / "bee" / "00.jpg").read_bytes())
    output = tmp_path / "made"
    assert shards.main([str(folder), "--output", str(output), "--size", "10", "--num_workers", workers]) == 0
    assert "--data_set tar --data_path" in capsys.readouterr().out
    assert sorted(os.listdir(output)) == ["_info.json", "train", "val"]
    assert sorted(os.listdir(output / "train")) == ["00000.tar", "00001.tar", "00002.tar", "index.npy"]
    for packed, source in zip(_load(output, "tar"), _load(folder, "folder")):
        assert packed.classes == source.classes
        assert _pictures(packed) == _pictures(source)
        assert (packed.places[:, 3] >= 0).all()
    assert shards.main([str(folder), "--output", str(output), "--check", "--num_workers", workers]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_the_same_folder_gives_the_same_bytes_and_neighbours_lie_apart(folder, made, tmp_path):
    shards.make(folder, tmp_path / "again", shards.Recipe(size=4))
    for path in made.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(made)).read_bytes() == path.read_bytes()
    first = _load(made, "tar")[0].targets[:4].tolist()
    assert 0 < sum(first) < 4  # of both classes


def test_larger_pictures_are_made_smaller_and_others_stay_as_they_are(folder, tmp_path, noise, capsys):
    noise(0, (90, 60)).save(folder / "train" / "ant" / "large.png")
    noise(1, (60, 90)).save(folder / "val" / "bee" / "high.jpg")
    shards.make(folder, tmp_path / "made", shards.Recipe(resize=30))
    train, val = _load(tmp_path / "made", "tar")
    sizes = {}
    for packed, source in zip((train, val), _load(folder, "folder")):
        whole = {_name(source, index): source.open(index)[0].data for index in range(len(source))}
        for index in range(len(packed)):
            name = _name(packed, index)
            picture = packed.open(index)[0]
            if picture.data != whole[name]:
                sizes[name] = picture.header.size
    assert sizes == {"ant/large.png": (45, 30), "bee/high.jpg": (30, 45)}
    assert list(shards.check(folder, tmp_path / "made")) == []
    noise(2, (90, 60)).save(folder / "train" / "ant" / "large.png")
    (problem,) = shards.check(folder, tmp_path / "made")
    assert "large.png: another picture than" in problem


def test_pictures_that_cannot_be_read_are_left_out_and_named(folder, tmp_path, capsys):
    (folder / "train" / "ant" / "00.jpg").write_bytes(b"no picture")
    output = str(tmp_path / "made")
    assert shards.main([str(folder), "--output", output, "--num_workers", "0"]) == 0
    assert "train: 1 pictures cannot be read and are left out, such as ant/00.jpg" in capsys.readouterr().out
    assert len(_load(output, "tar")[0]) == 23
    assert shards.main([str(folder), "--output", output, "--check", "--num_workers", "0"]) == 0


def test_one_split_alone_will_do(folder, tmp_path):
    shutil.rmtree(folder / "train")
    shards.make(folder, tmp_path / "made")
    config = DataConfig(data_set="tar", data_path=str(tmp_path / "made"))
    assert len(load_sources(config, seed=0, train=False)[1]) == 10


# refused


def _refused(capsys, message, *words):
    assert shards.main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_what_cannot_be_done_is_one_line(folder, made, tmp_path, capsys):
    before = sorted(path.read_bytes() for path in made.rglob("*.tar"))
    _refused(capsys, "is there already; give a new folder, or --check", folder, "--output", made)
    assert sorted(path.read_bytes() for path in made.rglob("*.tar")) == before
    _refused(capsys, "has neither train/ nor val/", tmp_path / "none", "--output", tmp_path / "new")
    _refused(capsys, "resize=0; expected 1 to 16384", folder, "--output", made, "--resize", "0")
    _refused(capsys, "required: --output", folder)
    _refused(capsys, "cannot be read as JSON", folder, "--output", tmp_path / "none", "--check")
    for recipe in ("7", '{"size": "x"}', '{"color": 1}'):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "_info.json").write_text(f'{{"recipe": {recipe}}}')
        _refused(capsys, "_info.json: recipe", folder, "--output", other, "--check")
    file = tmp_path / "file"
    file.write_text("")
    _refused(capsys, "is there already", folder, "--output", file)
    for path in (folder / "val" / "ant").iterdir():
        path.write_bytes(b"no picture")
    _refused(capsys, "they differ in ant. Is there a picture of it", folder, "--output", tmp_path / "lost")


# interrupted


def test_what_was_interrupted_goes_on_and_another_recipe_is_refused(folder, made, tmp_path, monkeypatch, capsys):
    write, output = shards.Shard.write, tmp_path / "made"

    def interrupting(shard, recipe):
        if shard.path.name == "00003.tar":
            shard.path.with_suffix(".tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(shard, recipe)

    command = [str(folder), "--output", str(output), "--num_workers", "0", "--size"]
    with monkeypatch.context() as patched:
        patched.setattr(shards.Shard, "write", interrupting)
        assert shards.main([*command, "4"]) == 130
    assert "the same command goes on" in capsys.readouterr().err and not output.exists()
    part = tmp_path / "made.part"
    times = {path: path.stat().st_mtime_ns for path in part.rglob("*.tar")}
    assert len(times) == 3
    (part / "train" / "00001.npy").unlink()  # as one that was interrupted there would leave it
    _refused(capsys, "was begun otherwise (size); remove it", *command, "5")
    _refused(capsys, "--num_workers -1; expected 0 to 1024", *command[:-2], "-1")
    written = []
    noting = lambda shard, recipe: written.append(shard.path.name) or write(shard, recipe)  # noqa: E731
    monkeypatch.setattr(shards.Shard, "write", noting)
    assert shards.main([*command, "4"]) == 0
    assert written == [f"{number:05}.tar" for number in (1, 3, 4, 5, 0, 1, 2)]
    assert not part.exists()
    for path in (path for path in made.rglob("*") if path.is_file()):
        assert (output / path.relative_to(made)).read_bytes() == path.read_bytes()
    assert not list(output.rglob("*.tmp"))


# Behind the first shard both workers wait, until the process that was interrupted calls off the others.
HELD = """
import os, sys, time
from pathlib import Path
from image_task import shards

folder, read, Pool = Path(sys.argv.pop(1)), shards.read_file, shards.ProcessPoolExecutor

def held(path):
    if list(folder.glob("made.part/*/*.tar")):
        (folder / f"held{os.getpid()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return read(path)

class Calling(Pool):
    def shutdown(self, **options):
        (folder / "go").touch()
        super().shutdown(**options)

shards.read_file, shards.ProcessPoolExecutor = held, Calling
sys.exit(shards.main())
"""


def test_ctrl_c_ends_all_processes_and_leaves_no_half_file_in_the_place_of_a_whole_one(folder, tmp_path):
    for number in range(30):
        shutil.copy(folder / "train" / "ant" / "00.jpg", folder / "train" / "ant" / f"more{number}.jpg")
    output = tmp_path / "made"
    command = [sys.executable, "-c", HELD, str(tmp_path), str(folder), "--output", str(output), "--size", "1"]
    process = subprocess.Popen(
        [*command, "--num_workers", "2", "--resize", "20"], stderr=subprocess.PIPE, text=True, process_group=0, cwd=ROOT
    )
    part = tmp_path / "made.part" / "train"
    forked.until(lambda: process.poll() is not None or len(list(tmp_path.glob("held*"))) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (130, "interrupted; the same command goes on\n")
    assert not output.exists() and 0 < len(list(part.glob("*.tar"))) < 54
    shards.make(folder, output, shards.Recipe(resize=20, size=1))
    assert list(shards.check(folder, output)) == []


def test_two_processes_do_not_make_the_same_shards(folder, tmp_path, capfd):
    (part := tmp_path / "made.part").mkdir()
    with (part / shards.LOCK).open("w") as file:
        lock(file, part)
        pid = forked.fork(lambda: shards.main([str(folder), "--output", str(tmp_path / "made")]))
        assert forked.wait([pid]) == [2]
    assert f"another process is writing to {part}; wait for it" in capfd.readouterr().err
    assert shards.make(folder, tmp_path / "made") and not list(tmp_path.rglob(shards.LOCK))


# damage


def test_a_check_names_every_picture_that_is_missing_other_or_too_many(folder, made, jpeg):
    (folder / "train" / "ant" / "00.jpg").write_bytes(jpeg(77))
    (folder / "train" / "ant" / "01.jpg").unlink()
    (folder / "val" / "bee" / "new.jpg").write_bytes(jpeg(78))
    found = "\n".join(sorted(shards.check(folder, made)))
    assert found.count("\n") == 2
    for message in ("ant/00.jpg: other bytes than", "ant/01.jpg: not in", "bee/new.jpg: not in the shards"):
        assert message in found


def _damaged(path, kind, rng):
    """A tar file of shards, cut short or with a flipped bit in a header or a picture; what was hit."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    member = rng.choice(members)
    if kind == "cut":
        end = rng.randrange(1, max(one.offset_data + one.size for one in members))
        path.write_bytes(data[:end])
        return None
    start, length = (member.offset, 257) if kind == "header" else (member.offset_data, member.size)
    data[rng.randrange(start, start + length)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return member.name


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("kind", ["cut", "header", "picture"])
def test_of_sixty_damaged_shards_each_is_named_and_no_damaged_picture_is_loaded(folder, made, tmp_path, kind, indexed):
    whole = {content for split in _load(folder, "folder") for _, content, _ in _pictures(split)}
    rng = random.Random(kind)
    for path in [] if indexed else made.glob("*/index.npy"):
        path.unlink()
    for number in range(10):
        copy = tmp_path / f"{number}"
        shutil.copytree(made, copy)
        path = rng.choice(sorted(copy.glob("*/*.tar")))
        hit = _damaged(path, kind, rng)
        try:
            splits = _load(copy, "tar")
        except UserError as error:
            assert str(path) in str(error)
            continue
        assert kind == "picture" or (kind == "header" and indexed)
        failed = []
        for split in splits:
            for index in range(len(split)):
                try:
                    assert split.open(index)[0].data in whole
                except ValueError as error:
                    failed.append((split.name(index), str(error)))
        assert failed == [(f"{path}:{hit}", "damaged: its checksum differs")]
        (problem,) = shards.check(folder, copy)
        assert f"{path}:{hit}: damaged: its checksum differs" in problem
        shutil.rmtree(copy)


def test_a_damaged_index_is_refused_and_without_one_the_files_say_the_same(folder, made):
    expected = [_pictures(split) for split in _load(made, "tar")]
    path = made / "train" / "index.npy"
    data, rng = path.read_bytes(), random.Random(0)
    for _ in range(20):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(rng.choice((damaged, data[: rng.randrange(len(data))], data + b"more")))
        with pytest.raises(UserError, match="index.npy is no index of these tar files"):
            _load(made, "tar")
    for other in made.glob("*/index.npy"):
        other.unlink()
    assert [_pictures(split) for split in _load(made, "tar")] == expected


def test_an_index_is_believed_where_the_tar_files_say_the_same(made):
    """Whoever changes it can compute its checksum anew, but not make of a picture one of another class."""
    path = made / "val" / "index.npy"
    found = np.load(io.BytesIO(path.read_bytes()))
    for column in ("name", "offset", "size", "crc"):
        swapped = found.copy()
        swapped[column][[0, -1]] = found[column][[-1, 0]]
        save_index(path, swapped)
        source = _load(made, "tar")[1]
        for index in range(len(source)):
            if (swapped[index] == found[index]).all():
                source.open(index)
            else:
                with pytest.raises(ValueError, match="checksum differs|gives it another name than the tar file"):
                    source.open(index)
    swapped["name"][0] = b"03.jpg"
    save_index(path, swapped)
    with pytest.raises(UserError, match="no index of these tar files .a picture in it lies in no class folder"):
        _load(made, "tar")


def test_an_index_that_is_a_pickle_or_claims_too_much_is_refused_in_one_line(made):
    path = made / "val" / "index.npy"
    found = io.BytesIO()
    np.save(found, np.zeros(3))
    array = found.getvalue()
    for data, reason in (
        (pickle.dumps([1]), "it is no array of NumPy's"),
        (array.replace(b"'<f8'", b"'|O' "), "Object arrays cannot be loaded"),
        (array.replace(b"(3,), }      ", b"(" + b"9" * 12 + b",), }")[:128], ""),
        (array[:8] + b"\xff\xff" + array[10:] * 900, "Header info length"),
    ):
        path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
        with pytest.raises(UserError, match=f"index.npy is no index of these tar files .{reason}") as caught:
            _load(made, "tar")
        assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [("shard", 99), ("shard", -1), ("offset", 0), ("offset", 2**63 - 512), ("size", -5), ("crc", -1)],
)
def test_an_index_that_leads_out_of_the_files_is_refused(made, column, value):
    path = made / "val" / "index.npy"
    found = np.load(io.BytesIO(path.read_bytes()))
    found[column][1] = value
    save_index(path, found)
    with pytest.raises(UserError, match="index.npy is no index .* leads out of the tar files"):
        _load(made, "tar")
    np.save(path, np.arange(3))
    data = path.read_bytes()
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    with pytest.raises(UserError, match="index.npy is no index of these tar files"):
        _load(made, "tar")


def test_training_goes_on_without_a_damaged_picture_and_counts_it(folder, made):
    from image_task.data import build_data

    source = _load(made, "tar")[0]
    place = source.place(5)
    with open(place.shard, "r+b") as file:
        file.seek(place.offset + place.size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 16]))
    config = DataConfig(
        data_set="tar",
        data_path=str(made),
        batch_size=24,
        num_workers=0,
        repeated_aug=False,
        max_unreadable=0.1,
    )
    data = build_data(config, img_size=16, rank=0, world_size=1, seed=0)
    assert len(next(data.train_batches(0))[0]) == 24
    report = data.report()
    assert report["unreadable_train"] == 1 and report["files"] == [source.name(5)]


def test_the_checksum_is_in_a_tar_file_that_every_tool_reads(made):
    path = made / "train" / "00000.tar"
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) == 4 and all(name.endswith(".jpg") for name in listed)
    with tarfile.open(path) as tar:
        image = Image.open(io.BytesIO(tar.extractfile(listed[0]).read()))
        assert np.asarray(image).shape == (30, 40, 3)
    assert json.loads((made / "_info.json").read_text())["recipe"]["size"] == 4
