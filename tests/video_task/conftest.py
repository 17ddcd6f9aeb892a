"""A small data set of real video files."""

import shutil

import pytest


@pytest.fixture(scope="session")
def _encoded(tmp_path_factory):
    from tests.video_task.clips import encode, moving

    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 100 * number + 10 * index + len(split)
                encode(root / split / name / f"{index}.mp4", moving(9 + index, 32, 48, seed), "mpeg4", gop=4)
    return root


@pytest.fixture
def videos(_encoded, tmp_path):
    """train/ with 2 x 8 videos and val/ with 2 x 3, in classes ant and bee, of 9 to 16 frames of 32 x 48."""
    pytest.importorskip("av")
    return shutil.copytree(_encoded, tmp_path / "videos")
