"""Folders of images as clips, what is kept of large frames, and files that would open others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from tests.limits import run_limited  # noqa: E402
from tests.video_task.clips import encode, moving  # noqa: E402
from video_task.data import decode  # noqa: E402
from video_task.data.decode import UnreadableVideo, num_frames, read_frames  # noqa: E402


def test_a_folder_of_images_is_a_clip_in_natural_order(tmp_path):
    frames = moving(12)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number + 1}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert num_frames(tmp_path) == 12
    assert np.array_equal(read_frames(tmp_path, [9, 1, 1]), np.stack(frames)[[9, 1, 1]])
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(UnreadableVideo, match=r"3\.png"):
        read_frames(tmp_path, [2])


def test_hidden_files_are_no_frames(tmp_path):
    for number in (1, 2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"img_{number}.png")
    (tmp_path / "._img_8.png").write_bytes(b"Mac OS X")
    (tmp_path / ".thumbnails.png").mkdir()
    assert num_frames(tmp_path) == 2 and read_frames(tmp_path, [1])[0, 0, 0, 0] == 2


def test_a_folder_of_frames_and_of_something_else_is_refused(tmp_path):
    for number in range(3):
        for name in ("img", "flow_x", "flow_y"):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{name}_{number:05}.jpg")
    with pytest.raises(UnreadableVideo, match="several kinds of images, flow_x_#, flow_y_#, img_#; keep"):
        read_frames(tmp_path, [0])
    for path in tmp_path.glob("flow*"):
        path.unlink()
    assert num_frames(tmp_path) == 3
    Image.new("RGB", (8, 8)).save(tmp_path / "img_00001.png")
    with pytest.raises(UnreadableVideo, match="some frames twice"):
        num_frames(tmp_path)


def test_16_bit_frames_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 20000, np.uint16)).save(tmp_path / "1.png")
    assert read_frames(tmp_path, [0])[0, 0, 0].tolist() == [78, 78, 78]


def test_large_frames_are_kept_small(tmp_path):
    Image.fromarray(np.zeros((2048, 4096), bool)).save(tmp_path / "1.png")
    for number in range(2, 13):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "1.png").read_bytes())
    code = (
        "import resource, sys; from video_task.data import read_frames\n"
        "for count in (2, 12):\n"
        "    frames = read_frames(sys.argv[1], range(count), keep=lambda one: one[::64, ::64].copy(), seconds=1e3)\n"
        "    print(frames.shape[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)\n"
    )
    two, most_of_two, twelve, most = map(int, run_limited(code, tmp_path).split())
    assert (two, twelve) == (2, 12) and most - most_of_two < 100  # MB; ten more as they are: 250


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    path = encode(tmp_path / "clip.mp4", moving(12), "mpeg4")
    monkeypatch.setattr(decode, "MAX_KEPT", 100_000)
    with pytest.raises(UnreadableVideo, match="12 frames of 48 x 64 x 3 are more than"):
        read_frames(path, range(12))
    assert len(read_frames(path, range(10))) == 10
    assert len(read_frames(path, range(12), keep=lambda frame: frame[:8])) == 12


def test_what_would_open_further_files_is_not_opened(tmp_path):
    (tmp_path / "away").mkdir()
    clip = Path(encode(tmp_path / "away" / "clip.mp4", moving(1), "mpeg4"))
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    texts = {
        "list.m3u8": "#EXTM3U\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "away.m3u8": f"#EXTM3U\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
        "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"/>',
        "still%d.mp4": "",
        "graph.mp4": "testsrc=duration=1",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UnreadableVideo, match="no format that is read here|Invalid data"):
            read_frames(tmp_path / name, [0])
    assert num_frames(tmp_path / "clip.mp4") == 1
