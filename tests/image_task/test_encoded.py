"""JPEGs that are decoded where the model is: the same crops of the same pictures, and refused where they cannot be.

torchvision decodes on a CPU as well, which stands in for nvJPEG here.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from image_task import encoded
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.encoded import EncodedBatch, check_decoder, encoded_batch
from image_task.flags import parse
from image_task.main import main
from image_task.transforms import train_transform
from rmeeto.data.pictures import Encoded
from rmeeto.errors import UserError
from tests.photographs import photograph

GPU = DataConfig(
    data_set="folder",
    decoder="nvjpeg",
    aa="none",
    batch_size=4,
    num_workers=0,
    repeated_aug=False,
    reprob=0.5,
)


def _file(image, form="JPEG", **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    """train/ and val/ with eight crops of photographs in two classes."""
    names = "sklearn/china.jpg", "sklearn/flower.jpg"
    for split in ("train", "val"):
        for number in range(8):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = photograph(names[number % 2]).crop((30 * number, 0, 30 * number + 300, 400))
            path.write_bytes(_file(image, quality=90))
    return tmp_path


def _build(config, folder, device="cpu"):
    config = replace(config, data_path=str(folder))
    return build_data(config, img_size=64, rank=0, world_size=1, seed=0, device=device)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_batches_are_those_of_pillow_within_the_rounding_of_the_decoders(photos, num_workers):
    ours = _build(replace(GPU, num_workers=num_workers), photos)
    theirs = _build(replace(GPU, decoder="pillow", draft="off"), photos)
    for epoch in range(2):
        for mine, other in zip(ours.train_batches(epoch), theirs.train_batches(epoch), strict=True):
            assert torch.equal(mine[1], other[1]) and mine[0].dtype == other[0].dtype == torch.float32
            assert (mine[0] - other[0]).abs().mean() < 0.02  # of deviation 1; one step of a byte is 0.017
    evaluated = list(zip(ours.eval_batches(), theirs.eval_batches(), strict=True))
    assert evaluated and all(torch.equal(*pair) for batches in evaluated for pair in zip(*batches, strict=True))


def test_workers_hand_over_the_files_as_they_are(photos):
    data = _build(GPU, photos)
    batch, unreadable = data.batches(0)[0]
    assert isinstance(batch, EncodedBatch) and not unreadable
    files = {path.read_bytes() for path in photos.rglob("train/*/*.jpg")}
    assert {file.numpy().tobytes() for file in batch.files.split(batch.lengths)} <= files
    assert batch.files.dtype == torch.uint8 and all(drawn.data is None for drawn in batch.drawn)


def _pixels(data):
    transform = train_transform(replace(GPU, reprob=0.0, color_jitter=0.0, mixup=0.0, cutmix=0.0), 64)
    return transform(Encoded(data))


def test_other_formats_and_colours_are_encoded_anew():
    image = photograph("sklearn/china.jpg").resize((96, 64))
    grey = image.convert("L").convert("RGB")
    for data in (
        _file(image, "PNG"),
        _file(image.convert("CMYK"), quality=95),
        _file(image, quality=95) + b"behind",
    ):
        (drawn, *_), expected = (
            train_transform(replace(GPU, reprob=0.0), 64).pixels(Encoded(part))
            for part in (data, _file(image, quality=95))
        )
        shown = Image.open(io.BytesIO(drawn.data.numpy().tobytes()))
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", (96, 64))
        assert np.abs(np.asarray(shown, float) - np.asarray(image, float)).mean() < 6
        assert expected[0].shape == drawn.shape == (3, 64, 64)
    assert _pixels(_file(grey.convert("L"), quality=95)).shape == (3, 64, 64)


def test_a_file_that_is_cut_short_is_unreadable_and_another_takes_its_place(photos):
    path = photos / "train" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    data = _build(replace(GPU, max_unreadable=0.5, batch_size=8), photos)
    assert len(next(data.train_batches(0))[0]) == 8
    assert data.report()["unreadable_train"] == 1 and data.report()["files"] == [str(path)]


def test_what_the_gpu_cannot_decode_pillow_does_and_what_neither_can_is_one_error(photos, monkeypatch):
    def refuse(files, device):
        raise RuntimeError("nvjpegDecode failed")

    data = _build(GPU, photos)
    expected = next(data.train_batches(0))
    monkeypatch.setattr(encoded, "_decoder", lambda: refuse)
    found = next(data.train_batches(0))
    assert torch.equal(found[1], expected[1]) and (found[0] - expected[0]).abs().mean() < 0.02
    batch, _ = data.batches(0)[0]
    batch.files[batch.lengths[0] // 2 : batch.lengths[0]] = 0
    with pytest.raises(UserError, match="neither nvJPEG nor Pillow can decode .*data.decoder"):
        data._train_transform.finish(batch)


def test_without_a_gpu_it_is_refused_in_one_line(photos, tmp_path, capsys):
    command = f"--data_set folder --data_path {photos} --model vim_tiny_patch16_224 --decoder nvjpeg --aa none"
    command += f" --device cpu --input_size 64 --batch_size 4 --output_dir {tmp_path / 'runs'}"
    assert main(command.split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note")]
    assert error == ["error: --decoder='nvjpeg' decodes on a GPU, and this runs on cpu; leave it out."]
    assert not (tmp_path / "runs").exists()


def test_a_torchvision_without_the_decoder_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.io", None)
    with pytest.raises(UserError, match="needs torchvision.io.decode_jpeg"):
        check_decoder(torch.device("cuda"))


@pytest.mark.parametrize("settings", [{"aa": "rand-m9"}, {"augment": False}])
def test_what_a_gpu_does_not_do_is_refused(settings):
    with pytest.raises(UserError, match="data.decoder='nvjpeg' augments JPEGs .* give --aa none"):
        train_transform(replace(GPU, **settings), 64)
    with pytest.raises(UserError, match="data.decoder='nvjpeg' augments JPEGs of more than 32 pixels"):
        train_transform(GPU, 32)


def test_the_flag_needs_pictures_without_a_policy():
    with pytest.raises(UserError, match="--decoder .*names a policy"):
        parse("--data_set folder --data_path d --decoder nvjpeg".split())


def test_a_batch_of_files_is_split_where_they_end():
    drawn = [_draw(number) for number in range(3)]
    batch = encoded_batch([(one, [], number) for number, one in enumerate(drawn)])
    parts = batch.files.split(batch.lengths)
    assert all(torch.equal(part, one.data) for part, one in zip(parts, drawn))
    assert batch.batch.targets.tolist() == [0, 1, 2]


def _draw(number):
    image = Image.new("RGB", (80 + number, 70), (number, 100, 200))
    return train_transform(GPU, 64).pixels(Encoded(_file(image)))[0]


@pytest.mark.gpu
def test_a_gpu_decodes_the_same_pictures(photos):
    ours = _build(GPU, photos, "cuda")
    theirs = _build(replace(GPU, decoder="pillow", draft="off"), photos)
    for mine, other in zip(ours.train_batches(0), theirs.train_batches(0), strict=True):
        assert mine[0].is_cuda and (mine[0].cpu() - other[0]).abs().mean() < 0.05
