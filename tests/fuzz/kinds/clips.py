"""Video files and folders of frames: damaged ones, and texts that would have other files opened."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.case import ACCEPT, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import ABSOLUTE, URL, damage, some_bytes
from tests.fuzz.programs import ODD, files_of, folder, unpack
from tests.video_task.clips import encode, moving
from video_task.data.decode import UnreadableVideo, num_frames, read_frames

FRAMES = 24
CODECS = {
    "h264.mp4": {"b_frames": 2}, "faststart.mp4": {"b_frames": 2, "container_options": {"movflags": "faststart"}},
    "h264.mkv": {"b_frames": 2}, "h264.ts": {}, "mpeg4.mp4": {"codec": "mpeg4"}, "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9"}, "vp8.webm": {"codec": "libvpx"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"}, "h264.avi": {},
}  # fmt: skip
MARKS = re.compile(rb"\xa3[\x40-\xff]|00dc|\x1f\x43\xb6\x75")  # of frames, and of some together
TARGETS = (
    "../outside/clip.mp4",
    ABSOLUTE.replace("secret.json", "clip.mp4"),
    URL,
    f"concat:{URL}",
    f"subfile,,start,0,end,0,,:{URL}",
)
PLAYLISTS = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{0}'\n",
    "v=0\no=- 0 0 IN IP4 127.77.77.77\ns=x\nc=IN IP4 127.77.77.77\nt=0 0\nm=video 47777 RTP/AVP 96\n",
    '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{0}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "[playlist]\nFile1={0}\n", "[Reference]\nRef1={0}\n", '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "RTSPtext {0}\n", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n",
)  # fmt: skip


@cache
def _made() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        return {key: Path(encode(Path(name, key), moving(FRAMES), **how)).read_bytes() for key, how in CODECS.items()}


def seeds() -> Mapping[str, bytes]:
    frames = {}
    for number, frame in enumerate(moving(FRAMES)[:12]):
        file = io.BytesIO()
        Image.fromarray(frame[::4, ::4]).save(file, "PNG")
        frames[f"{number}.png"] = file.getvalue()
    return {**_made(), "frames": folder(frames)}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed, choice = rng.choice(list(seeds)), rng.random()
    data = seeds[seed]
    if choice < 0.1:
        text = rng.choice(PLAYLISTS).format(rng.choice(TARGETS))
        return Case(text.encode(), rng.choice([name for name in seeds if name != "frames"]))
    if seed == "frames":
        files = files_of(data)
        name = rng.choice(list(files))
        if choice < 0.6:
            files[name] = damage(rng, files[name])
            return Case(folder(files), seed, SAME)
        files[rng.choice((name, "x.png", "00.png", "1.jpg", ".png", "99999999999999999999.png"))] = rng.choice(
            (*ODD, some_bytes(rng, files[name]))
        )
        return Case(folder(files), seed)
    if choice < 0.5:
        # Within the packets: what says how many there are is honest when it is changed.
        start, end = len(data) // 5, len(data) * 4 // 5
        if seed.endswith(".mp4"):
            start = data.index(b"mdat") + 4
            end = start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")
        # Of a transport stream only the marks of its packets can tell, which a long hole reaches.
        least = 256 if seed.endswith(".ts") else 1
        return Case(_hole(rng, data, start, end, least), seed, SAME)
    return Case(some_bytes(rng, data), seed)


def _hole(rng: Random, data: bytes, start: int, end: int, least: int) -> bytes:
    at, size = rng.randrange(start, end - least), rng.choice((1, 16, 256, 1024, 4096))
    stop = min(at + max(size, least), end)
    if least == 1 and rng.random() < 0.3:
        marks = [found.start() for found in MARKS.finditer(data, start, end)]
        at = rng.choice(marks) + rng.randrange(4) if marks and rng.random() < 0.5 else at
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data[:at] + bytes(stop - at) + data[stop:]


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    expected = FRAMES
    if case.seed == "frames":
        path, expected = Path("frames"), 12
        unpack(case.data, path)
    else:
        path = Path(case.seed)
        path.write_bytes(case.data)
    try:
        count = num_frames(path, seconds=4)
        frames = read_frames(path, lambda n: np.linspace(0, n - 1, min(n, 8)).astype(int), seconds=4)
    except UnreadableVideo as error:
        if "MemoryError" in str(error):  # FFmpeg's own "Cannot allocate memory" is a size that it does not try
            raise Wrong(str(error)) from None
        raise Refused(error.args[1].strip() and error.args[1].encode("unicode_escape").decode()) from None
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise Wrong(f"frames of {frames.shape}, {frames.dtype}")
    if case.right in (SAME, ACCEPT) and count != expected:
        raise Wrong(f"{count} of {expected} frames, without a word")
    return f"{count} frames"


KIND = Kind(seeds, mutate, check, weight=15, batch=20)
