"""The moving digits: classes, motion, and real files that are read back."""

import subprocess

import numpy as np
import pytest

pytest.importorskip("av")

from tests.warm import PYTHON
from video_task.config import VideoDataConfig  # noqa: E402
from video_task.data import build_data, read_frames  # noqa: E402
from video_task.data.digits import DIRECTIONS, render, write_digits  # noqa: E402


def centres(frames):
    """Row and column of the centre of mass of each frame."""
    weights = np.stack([frame[..., 0] for frame in frames]).astype(float)
    total = weights.sum((1, 2))
    rows, columns = np.arange(weights.shape[1]), np.arange(weights.shape[2])
    return (weights.sum(2) @ rows) / total, (weights.sum(1) @ columns) / total


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_digit_moves_in_its_direction_and_stays_inside(direction):
    scan = np.full((8, 8), 16.0)
    for seed in range(5):
        frames = render(scan, direction, 12, 64, np.random.default_rng(seed))
        assert len({frame.astype(int).sum() for frame in frames}) == 1, "the whole digit is always in the frame"
        rows, columns = centres(frames)
        down, right = DIRECTIONS[direction]
        moved, still = (rows, columns) if down else (columns, rows)
        assert ((moved[1:] - moved[:-1]) * (down + right) >= 0).all()
        assert abs(moved[-1] - moved[0]) > 15 and np.ptp(still) < 1e-9


def test_files_are_a_data_set_and_the_same_for_the_same_seed(tmp_path):
    settings = {"num_train": 2, "num_val": 1, "digits": (3, 7), "directions": ("left", "up")}
    for name in ("a", "b"):
        write_digits(tmp_path / name, **settings)
    ours, again = (sorted((tmp_path / name).rglob("*.mp4")) for name in ("a", "b"))
    assert len(ours) == 2 * 2 * 3
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(ours, again))
    config = VideoDataConfig(data_set="folder", data_path=str(tmp_path / "a"), batch_size=2, num_workers=0)
    data = build_data(config, img_size=32, rank=0, world_size=1, seed=0)
    assert data.class_names == ["3-left", "3-up", "7-left", "7-up"]
    assert (data.num_train, data.num_eval, data.num_test) == (8, 4, 4)


def test_a_file_shows_what_was_rendered(tmp_path):
    write_digits(tmp_path, num_train=1, num_val=0, digits=(5,), directions=("right",), length=10)
    (path,) = tmp_path.rglob("*.mp4")
    frames = read_frames(str(path), range(10))
    assert frames.shape == (10, 64, 64, 3)
    _, columns = centres(list(frames))
    assert columns[-1] - columns[0] > 15


def test_another_process_writes_the_same_files(tmp_path):
    """The encoder must not depend on what its memory held before."""
    command = (
        "import sys; from video_task.data.digits import write_digits; write_digits(sys.argv[1], num_train=4, num_val=0)"
    )
    contents = []
    for name in ("a", "b"):
        subprocess.run([PYTHON, "-c", command, str(tmp_path / name)], check=True)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.mp4"))])
    assert len(contents[0]) > 100 and contents[0] == contents[1]
