"""Damaged video files: every one is read or refused with a reason, in bounded time, and nothing is left open."""

import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from tests.video_task.clips import encode, moving  # noqa: E402
from video_task.data.decode import UnreadableVideo, num_frames, read_frames  # noqa: E402

FILES = {
    "h264.mp4": {"b_frames": 2},
    "faststart.mp4": {"b_frames": 2, "container_options": {"movflags": "faststart"}},
    "h264.mkv": {"b_frames": 2},
    "h264.ts": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none:pools=none"},
}
MORE = {
    "vp8.webm": {"codec": "libvpx"},
    "h264.avi": {},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "hevc.mkv": {"codec": "libx265", "x265-params": "log-level=none:pools=none"},
}
SECONDS = 5.0


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    frames = moving(40)
    return {name: open(encode(folder / name, frames, **how), "rb").read() for name, how in FILES.items()}


def _truncate(data, rng):
    return data[: rng.randrange(len(data))]


def _flip_bits(data, rng):
    for _ in range(rng.choice([1, 10, 100])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _garble_header(data, rng):
    for _ in range(rng.randrange(1, 20)):
        data[rng.randrange(min(len(data), 1500))] = rng.randrange(256)
    return data


def _garble_end(data, rng):
    for _ in range(rng.randrange(1, 20)):
        data[-rng.randrange(1, min(len(data), 1500))] = rng.randrange(256)
    return data


def _overwrite(data, rng):
    start, size = rng.randrange(len(data)), rng.randrange(1, 3000)
    part = len(data[start : start + size])
    data[start : start + size] = rng.choice([bytes(part), rng.randbytes(part)])
    return data


def _insert(data, rng):
    start = rng.randrange(len(data))
    data[start:start] = rng.choice([rng.randbytes(rng.randrange(1, 500)), data[start : start + 2000]])
    return data


def _delete(data, rng):
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 2000)]
    return data


MUTATIONS = [_truncate, _flip_bits, _garble_header, _garble_end, _overwrite, _insert, _delete]


def _fuzz(originals, folder, seeds):
    """(file name, mutation, error or None, seconds of a core) of every damaged file."""
    outcomes = []
    for seed in seeds:
        rng = random.Random(seed)
        name, mutate = rng.choice(list(originals)), rng.choice(MUTATIONS)
        path = folder / f"damaged{os.path.splitext(name)[1]}"
        path.write_bytes(mutate(bytearray(originals[name]), rng))
        began, error = time.process_time(), None
        try:
            frames = read_frames(path, lambda n: np.linspace(0, n - 1, 8).astype(int), seconds=SECONDS)
            assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[::3] == (8, 3)
        except UnreadableVideo as caught:
            error = caught
            assert caught.args[0] == str(path) and caught.args[1]
        outcomes.append((name, mutate, error, time.process_time() - began))
    return outcomes


def test_damaged_files_are_read_or_refused_in_bounded_time_and_nothing_stays_open(originals, tmp_path):
    _fuzz(originals, tmp_path, range(1000, 1005))  # whatever is opened once
    before = os.listdir("/proc/self/fd")
    outcomes = _fuzz(originals, tmp_path, range(280))
    assert os.listdir("/proc/self/fd") == before
    assert max(seconds for *_, seconds in outcomes) < SECONDS + 1
    refused = sum(error is not None for _, _, error, _ in outcomes)
    assert 100 < refused < 280  # some damage cannot be noticed, such as another brightness of a block


@pytest.mark.slow
def test_many_more_damaged_files(originals, tmp_path):
    outcomes = _fuzz(originals, tmp_path, range(2000, 8000))
    assert max(seconds for *_, seconds in outcomes) < SECONDS + 1


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".ts")])
def test_a_truncated_file_is_refused(originals, tmp_path, name):
    data = originals[name]
    path = tmp_path / name
    for share in (0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95):
        path.write_bytes(data[: int(share * len(data))])
        for read in (num_frames, lambda path: read_frames(path, [0])):
            with pytest.raises(UnreadableVideo):
                read(path)


def test_a_stream_that_is_cut_between_frames_has_those_that_are_there(originals, tmp_path):
    """A transport stream does not say how long it is; one that is cut within a frame is damaged."""
    path, data = tmp_path / "half.ts", originals["h264.ts"]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableVideo, match="damaged"):
        num_frames(path)
    with av.open(io.BytesIO(data)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    path.write_bytes(data[: places[25]])
    assert num_frames(path) == 25 == len(read_frames(path, lambda n: range(n)))


@pytest.mark.parametrize("name", [*FILES, "vp8.webm", "h264.avi", "mjpeg.avi", "hevc.mkv"])
def test_a_hole_in_a_file_never_takes_frames_away_or_moves_them(originals, tmp_path, name):
    """256 to 4,096 bytes set to zero in the middle: unreadable, or 40 frames in their places."""
    if name not in originals:
        originals[name] = Path(encode(tmp_path / name, moving(40), **MORE[name])).read_bytes()
    data, path = originals[name], tmp_path / f"hole-{name}"
    rng, refused = random.Random(name), 0
    for number in range(12):
        size = min(256 << number % 5, len(data) // 6)
        start = rng.randrange(len(data) // 5, len(data) * 4 // 5 - size)
        path.write_bytes(data[:start] + bytes(size) + data[start + size :])
        try:
            assert num_frames(path) == 40, (start, size)
            assert len(read_frames(path, range(40))) == 40
        except UnreadableVideo:
            refused += 1
            with pytest.raises(UnreadableVideo):  # at the second time too, of which FFmpeg says the same
                read_frames(path, range(40))
    assert refused >= 5


def test_a_chunk_of_an_avi_that_reaches_beyond_the_end_is_damage(originals, tmp_path):
    """A bit of its size, which takes the frames that follow it or its own away."""
    data, path = originals["mpeg4.avi"], tmp_path / "chunk.avi"
    places = [place for place in range(len(data)) if data[place : place + 4] == b"00dc"]
    for place in (places[1], places[7], places[20]):
        path.write_bytes(data[: place + 7] + b"\x20" + data[place + 8 :])
        with pytest.raises(UnreadableVideo):
            num_frames(path)


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm", "vp8.webm", "h264.avi", "mjpeg.avi"])
def test_a_frame_whose_mark_is_damaged_is_never_stepped_over(originals, tmp_path, name):
    """One bit of what says that a frame follows: FFmpeg takes it for something that it does not know."""
    if name not in originals:
        originals[name] = Path(encode(tmp_path / name, moving(40), **MORE[name])).read_bytes()
    data, path, avi = originals[name], tmp_path / f"mark-{name}", name.endswith(".avi")
    with av.open(io.BytesIO(data)) as file:
        behind = [packet.pos for packet in file.demux(video=0) if packet.size]
    starts = [data.rindex(b"00dc" if avi else b"\xa3", 0, at - 1) for at in behind]
    assert len(set(starts)) == 40
    clusters = [at for at in range(len(data)) if data[at : at + 4] == b"\x1f\x43\xb6\x75"]
    for at in [*starts[1::5], *clusters]:
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            try:
                assert num_frames(path) == 40 and avi
            except UnreadableVideo:
                pass


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("live.webm", {"codec": "libvpx", "container_options": {"live": "1"}}),
        ("live.mkv", {"container_options": {"live": "1"}}),
        ("alpha.webm", {"codec": "libvpx", "pixels": "yuva420p", "auto-alt-ref": "0"}),
        ("front.mkv", {"b_frames": 2, "container_options": {"cues_to_front": "1", "reserve_index_space": "4000"}}),
        ("sums.mkv", {"container_options": {"write_crc32": "1", "cluster_size_limit": "3000"}}),
        ("times.webm", {"codec": "libvpx-vp9", "milliseconds": [40 * n + 13 * (n % 3) for n in range(40)]}),
        *((f"dropped.{end}", {"milliseconds": [33 * (n + n // 7) for n in range(40)]}) for end in ("mkv", "mp4")),
    ],
)
def test_what_honest_recorders_write_is_read(tmp_path, name, how):
    """Streams without sizes, as browsers record; transparency beside the frames; times that are uneven or dropped."""
    path = encode(tmp_path / name, moving(40), **how)
    assert num_frames(path) == 40 == len(read_frames(path, range(40)))


def test_nothing_of_what_ffmpeg_says_is_printed_and_its_level_is_as_before(originals, tmp_path, capfd):
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    data = originals["h264.mkv"]
    (tmp_path / "hole.mkv").write_bytes(data[:9000] + bytes(2000) + data[11000:])
    with pytest.raises(UnreadableVideo, match="damaged: "):
        read_frames(tmp_path / "hole.mkv", range(40))
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before
    assert capfd.readouterr() == ("", "")
