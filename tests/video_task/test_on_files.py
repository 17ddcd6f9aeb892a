"""`predict` and `visualize` on clips: as the test sees them, and along untrimmed videos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rmeeto.cli.chosen import choose
from rmeeto.errors import UserError
from rmeeto.hub import export
from video_task import predict, visualize
from video_task.clips import Preparation
from video_task.data import build_data
from video_task.data.decode import UnreadableVideo, iterate_frames, num_frames, read_frames
from video_task.data.digits import encode, write_digits
from video_task.main import TASK

DIGITS = Path(__file__).resolve().parents[2] / "video_task" / "exp_sh" / "digits"
NANO = (
    "--model videomamba_video_nano_patch4_32 --tubelet_size 2 --input_size 24 --short_side_size 32 --device cpu"
).split()
TRAINED = [*NANO, "--model_pth", str(DIGITS / "retrained.safetensors"), "--r", "60"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """val/4-right/0000.mp4 and val/4-down/0000.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    write_digits(folder, num_train=0, num_val=1, digits=(4,), directions=("right", "down"))
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """50 frames that tell their number by their brightness."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    encode(path, [np.full((32, 48, 3), 4 * number, np.uint8) for number in range(50)])
    return path


def test_the_answer_is_that_of_the_test(clips, capsys):
    assert predict.main([str(clips), *TRAINED, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(answer["file"]).parent.name: answer["index"] for answer in found} == {
        "4-down": 8,
        "4-right": 10,
    }


def test_views_are_those_of_the_test(clips):
    chosen, _ = choose(TASK, TRAINED)
    data = {"data_set": "folder", "data_path": str(clips), "num_workers": 0, "batch_size": 12}
    config = type(chosen.config.data)(**{**vars(chosen.config.data), **data})
    batches = build_data(config, img_size=24, rank=0, world_size=1, seed=0, train=False).test_batches()
    expected = next(iter(batches))[0]
    torch.testing.assert_close(Preparation(chosen).views(clips / "val" / "4-down" / "0000.mp4"), expected)


@pytest.mark.parametrize(("stride", "span"), [(8, 16), (20, 8), (3, 32), (40, 64)])
def test_windows_slide_over_a_video_and_decode_each_frame_once(stride, span, long, monkeypatch):
    prepare = Preparation(choose(TASK, TRAINED)[0])
    seen: list[int] = []

    def watched(*args, **kwargs):
        for number, frame in iterate_frames(*args, **kwargs):
            seen.append(number)
            yield number, frame

    monkeypatch.setattr("video_task.clips.iterate_frames", watched)
    windows = list(prepare.windows(long, stride, span))
    assert seen == sorted(set(seen))
    last = prepare.offsets(span)[-1]
    expected = [start for start in range(0, 50, stride) if start + last < 50] or [0]
    assert [start for start, *_ in windows] == expected
    for start, frames, clip in windows:
        assert frames == min(span, 50 - start)
        indices = [min(start + offset, 49) for offset in prepare.offsets(span)]
        if start + last < 50:
            torch.testing.assert_close(clip, prepare.middle(read_frames(long, indices)))


def test_a_video_shorter_than_a_window_gives_one(tmp_path):
    prepare = Preparation(choose(TASK, TRAINED)[0])
    encode(tmp_path / "short.mp4", [np.full((32, 48, 3), 4 * number, np.uint8) for number in range(15)])
    assert [window[:2] for window in prepare.windows(tmp_path / "short.mp4", 1, 16)] == [(0, 15)]


def test_a_model_folder_sees_what_its_training_saw_and_flags_without_effect_are_said(clips, tmp_path):
    model = choose(TASK, TRAINED)[0].model
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 0.75}
    folder = str(export(model, tmp_path / "model"))
    chosen, notices = choose(TASK, ["--model_pth", folder, "--device", "cpu", "--amp", "bf16"])
    assert Preparation(chosen).middle.short_side == 32
    assert "--amp has no effect: answers are computed in fp32" in notices
    chosen, _ = choose(TASK, ["--model_pth", folder, "--short_side_size", "40", "--decoder", "torchcodec"])
    with pytest.raises(UserError, match="--decoder torchcodec does not load"):
        Preparation(chosen)


def test_what_came_before_the_damage_is_answered(long, capsys, monkeypatch):
    def damaged(path, wanted, **kwargs):
        for number, frame in iterate_frames(path, wanted, **kwargs):
            if number > 30:
                raise UnreadableVideo(path, "it is damaged")
            yield number, frame

    monkeypatch.setattr("video_task.clips.iterate_frames", damaged)
    assert predict.main([str(long), *TRAINED, "--stride", "8", "--span", "8", "--json"]) == 2
    done = capsys.readouterr()
    assert [json.loads(line)["first_frame"] for line in done.out.splitlines()] == [0, 8, 16]
    assert "it is damaged" in done.err


def test_outputs_that_are_no_numbers_are_no_answer(clips, capsys, monkeypatch):
    chosen, _ = choose(TASK, TRAINED)
    torch.nn.init.constant_(chosen.model.head.weight, float("nan"))
    monkeypatch.setattr("rmeeto.cli.on_files.choose", lambda *_, **__: (chosen, []))
    assert predict.main([str(clips), *TRAINED, "--json"]) == 2
    done = capsys.readouterr()
    assert not done.out and "the outputs are not finite" in done.err


@pytest.mark.parametrize("count", [1, 2, 12, 30])
def test_a_clip_shorter_than_a_window_is_answered_with_as_many_frames_as_it_has(count, tmp_path, capsys):
    clip, out = tmp_path / "short.mp4", tmp_path / "out.npz"
    encode(clip, [np.full((32, 48, 3), 4 * number, np.uint8) for number in range(count)])
    assert predict.main([str(clip), *TRAINED, "--stride", "16", "--json", "--features", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["first_frame"], json.loads(line)["frames"]) == (0, count)
    with np.load(out) as kept:
        assert list(kept["frames"]) == [count]


def test_frames_in_order_are_those_that_are_read_by_number(long, clips):
    for path in (long, clips / "val" / "4-down" / "0000.mp4"):
        count = num_frames(path)
        numbers, frames = zip(*iterate_frames(path, lambda number: number % 3 == 1))
        assert list(numbers) == list(range(1, count, 3))
        np.testing.assert_array_equal(np.stack(frames), read_frames(path, numbers))


def test_a_damaged_video_is_named_and_the_rest_is_answered(clips, tmp_path, capsys):
    whole = (clips / "val" / "4-down" / "0000.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.mp4").write_bytes(whole)
    for more in ([], ["--stride", "8", "--span", "8"]):
        assert predict.main([str(tmp_path), *TRAINED, *more]) == 2
        done = capsys.readouterr()
        assert "cut.mp4" in done.err and "whole.mp4" in done.out and "Traceback" not in done.err
    with pytest.raises(UnreadableVideo):
        list(iterate_frames(tmp_path / "cut.mp4", lambda number: True))


def test_windows_have_their_place_in_the_archive(long, tmp_path, capsys):
    out = tmp_path / "out.npz"
    argv = [str(long), *TRAINED, "--stride", "16", "--span", "16", "--json", "--features", str(out)]
    assert predict.main(argv) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["first_frame"] for line in lines] == [0, 16, 32]
    with np.load(out) as kept:
        assert kept["features"].shape == (3, 32) and list(kept["first_frame"]) == [0, 16, 32]


def test_weights_of_fewer_frames_slide_over_a_video_with_more(long, capsys):
    """Trained on 8 frames of a clip: the temporal embedding is interpolated for the 12 that are asked for."""
    argv = [str(long), *TRAINED, "--num_frames", "12", "--stride", "16", "--span", "16", "--json"]
    assert predict.main(argv) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["first_frame"], line["frames"]) for line in lines] == [(0, 16), (16, 16), (32, 16)]
    chosen, _ = choose(TASK, [*TRAINED, "--num_frames", "12"])
    assert chosen.model.input_size == (3, 12, 24, 24)
    assert len(Preparation(chosen).offsets(16)) == 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stride", "0"], "--stride 0"),
        (["--span", "8"], "--span has no effect without --stride"),
        (["--stride", "4", "--span", "4"], "the model's 8 frames"),
        (["--stride", "4", "--span", "0"], "--stride 4 --span 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(more, message, long, capsys):
    assert predict.main([str(long), *TRAINED, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_clip_is_drawn_as_a_sheet_and_as_animations(clips, tmp_path):
    argv = [
        str(clips / "val" / "4-right" / "0000.mp4"),
        *TRAINED,
        "--animation",
        "both",
        "--output",
        str(tmp_path),
    ]
    assert visualize.main(argv) == 0
    with Image.open(tmp_path / "0000-merged.gif") as gif:
        assert gif.n_frames == 8
    assert num_frames(tmp_path / "0000-merged.mp4") == 8
    with Image.open(tmp_path / "0000-merged.png") as sheet:
        assert sheet.width > 8 * 180


def test_animations_of_a_random_model_say_so(clips, tmp_path):
    argv = [str(clips / "val" / "4-right" / "0000.mp4"), *NANO, "--r", "60", "--animation", "both"]
    assert visualize.main([*argv, "--output", str(tmp_path)]) == 0
    with Image.open(tmp_path / "0000-merged.gif") as gif:
        stills = []
        for number in range(gif.n_frames):
            gif.seek(number)
            stills.append(np.asarray(gif.convert("RGB")))
    stills += list(read_frames(tmp_path / "0000-merged.mp4", range(8)))
    assert len(stills) == 16
    for still in stills:
        near = np.abs(still[:40].astype(int) - (170, 0, 0)).max(-1) < 30  # GIF and H.264 shift a colour
        assert near.mean() > 0.3


def test_a_clip_is_drawn_in_its_own_pixels(long):
    prepare = Preparation(choose(TASK, TRAINED)[0])
    x, frames = prepare.middle_view(long)
    assert x.shape == (1, 3, 8, 24, 24)
    whole = read_frames(long, prepare._indices)
    np.testing.assert_allclose(frames, whole[:, 4:28, 12:36] / 255)  # 24 of the 32 pixels of the shorter side


def test_an_animation_that_is_there_is_not_replaced_silently(clips, tmp_path, capsys):
    (tmp_path / "0000-merged.gif").write_text("mine")
    argv = [str(clips / "val" / "4-right" / "0000.mp4"), *TRAINED, "--output", str(tmp_path)]
    assert visualize.main(argv) == 2
    assert "0000-merged.gif is there already" in capsys.readouterr().err
    assert (tmp_path / "0000-merged.gif").read_text() == "mine" and not list(tmp_path.glob("*.png"))
