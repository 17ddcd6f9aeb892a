"""Reading frames: equal to a full sequential decode, upright, with no more work than is needed."""

import os
import pickle
import random
import struct
import wave
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from rmeeto.errors import UserError  # noqa: E402
from tests.video_task.clips import decode_all, encode, moving  # noqa: E402
from video_task.data import decode, pyav  # noqa: E402
from video_task.data.decode import UnreadableVideo, num_frames, read_frames  # noqa: E402

# number of frames, height, width, and how they are encoded
CLIPS = {
    "one.mp4": (1, 48, 64, {}),
    "two.mp4": (2, 48, 64, {"b_frames": 2}),
    "plain.mp4": (60, 48, 64, {}),
    "b.mp4": (60, 48, 64, {"b_frames": 3}),
    "pyramid.mp4": (90, 48, 64, {"b_frames": 5, "gop": 30, "x264-params": "b-pyramid=normal:ref=4"}),
    "open_gop.mp4": (90, 48, 64, {"b_frames": 3, "x264-params": "open-gop=1:scenecut=0"}),
    "long.mp4": (300, 32, 48, {"b_frames": 3, "gop": 250}),
    "intra.mp4": (17, 48, 64, {"gop": 1}),
    "odd.mp4": (25, 45, 63, {"b_frames": 2, "pixels": "yuv444p"}),
    "ntsc.mov": (40, 48, 64, {"b_frames": 2, "rate": Fraction(30000, 1001)}),
    "variable.mp4": (40, 48, 64, {"b_frames": 3, "milliseconds": [n * n + 7 * n for n in range(40)]}),
    "variable.mkv": (30, 48, 64, {"b_frames": 2, "milliseconds": [200 * n + n % 3 * 60 for n in range(30)]}),
    "h264.ts": (40, 48, 64, {"b_frames": 2}),
    "interlaced.mp4": (20, 48, 64, {"x264-params": "tff=1"}),
    "mpeg4.mp4": (60, 48, 64, {"codec": "mpeg4"}),
    "mpeg4_b.mp4": (35, 47, 61, {"codec": "mpeg4", "b_frames": 2}),
    "variable.avi": (20, 48, 64, {"codec": "mpeg4", "milliseconds": [60 * n + n % 3 * 20 for n in range(20)]}),
    "mpeg4.avi": (60, 48, 64, {"codec": "mpeg4", "rate": 12}),
    "mpeg4_b.avi": (31, 48, 64, {"codec": "mpeg4", "b_frames": 2}),
    "h264_b.avi": (30, 48, 64, {"b_frames": 3}),
    "vp8.webm": (40, 48, 64, {"codec": "libvpx", "deadline": "good", "lag-in-frames": 16, "auto-alt-ref": 1}),
    "av1.mkv": (20, 64, 64, {"codec": "libsvtav1", "preset": 12, "svtav1-params": "lookahead=10"}),
    "vp9.webm": (60, 48, 64, {"codec": "libvpx-vp9"}),
    "vp9_odd.webm": (23, 33, 35, {"codec": "libvpx-vp9", "gop": 5, "rate": 24}),
    "vp9_hidden.webm": (40, 48, 64, {"codec": "libvpx-vp9", "deadline": "good", "cpu-used": 4, "lag-in-frames": 16,
                                     "auto-alt-ref": 1}),
    "hevc.mp4": (30, 48, 64, {"codec": "libx265", "b_frames": 3, "x265-params": "log-level=none:pools=none"}),
    "mjpeg.avi": (9, 45, 63, {"codec": "mjpeg", "pixels": "yuvj420p"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """clips(name) -> the path of a clip of the table, encoded at first use."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name):
        count, height, width, options = CLIPS[name]
        path = folder / name
        return str(path) if path.exists() else encode(path, moving(count, height, width), **options)

    return get


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_a_full_sequential_decode(clips, name):
    path, count = clips(name), CLIPS[name][0]
    expected = decode_all(path)
    assert len(expected) == count == num_frames(path)
    assert np.array_equal(read_frames(path, range(count)), expected)
    rng = np.random.default_rng(count)
    for size in (1, 1, 1, 8):
        chosen = rng.integers(0, count, size).tolist()  # unsorted, repeated
        frames = read_frames(path, chosen)
        assert frames.dtype == np.uint8 and np.array_equal(frames, expected[chosen])


@pytest.mark.parametrize("name", ["two.mp4", "open_gop.mp4", "ntsc.mov", "mpeg4_b.avi", "h264_b.avi", "vp9_odd.webm"])
def test_each_frame_alone_equals_the_sequential_decode(clips, name):
    path = clips(name)
    for index, expected in enumerate(decode_all(path)):
        assert np.array_equal(read_frames(path, [index])[0], expected)


def _random_encoding(rng):
    """Codec, container and settings as an encoder may combine them."""
    codec, container = rng.choice(
        [("libx264", c) for c in ("mp4", "mov", "matroska", "avi", "flv", "mpegts")]
        + [("mpeg4", c) for c in ("mp4", "avi")]
        + [
            ("libvpx-vp9", "webm"),
            ("libvpx", "webm"),
            ("libx265", "mp4"),
            ("libsvtav1", "mp4"),
            ("mpeg2video", "mpeg"),
        ]
    )
    settings = {"gop": rng.choice([1, 2, 5, 12, 250]), "rate": rng.choice([24, 30, Fraction(30000, 1001)])}
    if codec in ("libx264", "libx265", "mpeg4"):
        settings["b_frames"] = rng.choice([0, 2, 5]) if codec != "mpeg4" else rng.choice([0, 2])
    if codec == "libx264":
        choices = ["open-gop=1", "intra-refresh=1", "slices=4", "b-pyramid=strict", "tff=1", "bitrate=40"]
        settings["x264-params"] = ":".join(rng.sample(choices, rng.randrange(3))) or "slices=1"
    if codec == "libx265":
        settings["x265-params"] = f"log-level=none:pools=none:open-gop={rng.randrange(2)}"
    if codec == "libvpx-vp9":
        settings |= {"lag-in-frames": rng.choice([0, 16]), "auto-alt-ref": 1}
    if codec == "libsvtav1":
        settings |= {"preset": 12, "svtav1-params": f"pred-struct={rng.choice([1, 2])}"}
    if container in ("mp4", "mov"):
        flags = ["faststart", "frag_keyframe+empty_moov", "negative_cts_offsets"]
        settings["container_options"] = {"movflags": rng.choice(flags)}
    return codec, {"container": container, **settings}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_random_encodings_equal_a_full_sequential_decode(tmp_path, seed):
    rng = random.Random(seed)
    codec, settings = _random_encoding(rng)
    path = encode(tmp_path / "clip", moving(rng.choice([1, 2, 3, 17, 40, 60]), 64, 80, seed), codec, **settings)
    expected = decode_all(path)
    assert num_frames(path) == len(expected)
    for size in (1, 1, 1, 3, 8):
        chosen = [rng.randrange(len(expected)) for _ in range(size)]
        assert np.array_equal(read_frames(path, chosen), expected[chosen]), (codec, settings)


def test_indices_may_depend_on_the_number_of_frames(clips):
    path = clips("b.mp4")
    assert np.array_equal(read_frames(path, lambda n: [n - 1, n // 2]), decode_all(path)[[59, 30]])


def test_several_threads_give_the_same_frames(clips):
    path = clips("b.mp4")
    assert np.array_equal(read_frames(path, [3, 40, 59], threads=2), read_frames(path, [3, 40, 59]))


def _decoded(monkeypatch, path, indices):
    """How many packets are decoded, and how often the decoder starts."""
    counts = []
    run = pyav.Clip._decode

    def counted(self, packets, wanted=None):
        counts.append(len(packets))
        return run(self, packets, wanted)

    monkeypatch.setattr(pyav.Clip, "_decode", counted)
    read_frames(path, indices)
    return counts


def test_only_the_groups_that_are_needed_are_decoded(clips, monkeypatch):
    path = clips("plain.mp4")  # 60 frames, a key frame every 12
    assert sum(_decoded(monkeypatch, path, [36])) == 1
    assert sum(_decoded(monkeypatch, path, [40, 40, 38])) == 5
    assert _decoded(monkeypatch, path, [59, 2]) == [3, 12]
    assert _decoded(monkeypatch, path, range(60)) == [60]


def test_frames_that_nothing_refers_to_are_left_out(clips):
    path = clips("long.mp4")
    with decode._reading(path, 10) as check_time, pyav.open_clip(path, 10, check_time, decode.MAX_PIXELS) as clip:
        every = sum(1 for _ in clip._decode(clip._packets))
        fewer = sum(1 for _ in clip._decode(clip._packets, wanted={clip._packets[-1].pts}))
    assert every == 300 and fewer < 250


def _patch_decoder(monkeypatch, change):
    run = pyav.Clip._decode
    monkeypatch.setattr(
        pyav.Clip,
        "_decode",
        lambda self, packets, wanted=None: change(list(run(self, packets, wanted)), wanted),
    )


def test_a_decoder_that_gives_frames_in_another_order_is_started_from_the_beginning(clips, monkeypatch):
    expected = decode_all(clips("b.mp4"))[[0, 20, 21, 59]]
    _patch_decoder(monkeypatch, lambda frames, wanted: iter(frames[::-1] if wanted else frames))
    assert np.array_equal(read_frames(clips("b.mp4"), [0, 20, 21, 59]), expected)


def test_a_decoder_that_swallows_a_frame_has_the_last_word_on_their_number(clips, monkeypatch):
    every = decode_all(clips("b.mp4"))
    with av.open(clips("b.mp4")) as file:
        third = [frame.pts for frame in file.decode(video=0)][2]
    _patch_decoder(monkeypatch, lambda frames, _: iter([f for f in frames if f.pts != third]))
    assert np.array_equal(read_frames(clips("b.mp4"), lambda n: [2, n - 1]), every[[3, 59]])


def test_frames_before_the_start_of_an_edit_list_do_not_count(clips, tmp_path):
    data = bytearray(open(clips("b.mp4"), "rb").read())
    at = data.index(b"elst") + 4
    version, entries, _, media_time = struct.unpack_from(">IIIi", data, at)
    assert (version, entries) == (0, 1)
    struct.pack_into(">i", data, at + 12, media_time + 5 * 512)  # 15360 ticks a second
    path = tmp_path / "cut.mp4"
    path.write_bytes(data)
    expected = decode_all(str(path))
    assert len(expected) == 55 == num_frames(path)
    assert np.array_equal(read_frames(path, range(55)), expected)
    assert np.array_equal(read_frames(path, [30]), expected[30:31])


# orientation


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rotated_clip_is_turned_upright(tmp_path, rotation):
    frames = moving(4)
    plain = read_frames(encode(tmp_path / "plain.mp4", frames), range(4))
    path = encode(tmp_path / "rotated.mp4", frames, rotation=rotation)
    assert np.array_equal(read_frames(path, range(4)), np.rot90(plain, rotation // 90, axes=(1, 2)))


@pytest.mark.parametrize(
    "matrix", [(a, b, c, d) for a, b, c, d in np.ndindex(3, 3, 3, 3) if (a - 1) * (d - 1) - (b - 1) * (c - 1)]
)
def test_every_quarter_turn_and_mirror_moves_pixels_as_the_matrix_says(matrix):
    a, b, c, d = (value - 1 for value in matrix)
    if abs(a) + abs(b) == 2 or abs(c) + abs(d) == 2:
        return  # no quarter turn
    image = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    placed = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(2) for x in range(3)}
    columns, rows = (sorted({place[axis] for place in placed}) for axis in (0, 1))
    expected = np.array([[placed[x, y] for x in columns] for y in rows])
    found = pyav.upright(image, np.array([a, b, 0, c, d, 0, 0, 0, 1]) << 16)
    assert np.array_equal(found, expected)


# bad input


def _silence(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000), file.writeframes(bytes(8000))


def test_what_is_no_video_is_named_with_a_reason(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("a,b,c\n" * 100)
    (tmp_path / "folder").mkdir()
    _silence(tmp_path / "sound.wav")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    reasons = {
        "absent.mp4": "No such file",
        "empty.mp4": "Invalid data",
        "text.mp4": "Invalid data",
        "folder": "without images",
        "sound.wav": "no video",
        "pipe.mp4": "not a regular file",
        "list.m3u8": "Invalid data",
    }
    for name, reason in reasons.items():
        for read in (num_frames, lambda path: read_frames(path, [0])):
            with pytest.raises(UnreadableVideo, match=reason) as caught:
                read(tmp_path / name)
            assert name in str(caught.value)


def test_names_that_look_like_protocols_are_files(tmp_path, clips):
    path = tmp_path / "12:30 100%d.mp4"
    path.write_bytes(open(clips("one.mp4"), "rb").read())
    assert num_frames(path) == 1


def test_a_frame_that_is_not_there_is_an_index_error(clips):
    for index in (-1, 60):
        with pytest.raises(IndexError, match="of a clip of 60"):
            read_frames(clips("b.mp4"), [index])
    with pytest.raises(IndexError, match="no frame is asked for"):
        read_frames(clips("b.mp4"), [])


def test_time_size_and_pixels_are_bounded(clips, monkeypatch):
    path = clips("b.mp4")
    with pytest.raises(UnreadableVideo, match="within 0 s"):
        read_frames(path, [0], seconds=0)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableVideo):
        read_frames(path, [0])
    monkeypatch.setattr(pyav, "MAX_BYTES", 1000)
    with pytest.raises(UnreadableVideo, match="cut it"):
        read_frames(path, [0])


def test_slow_decoding_is_given_up_in_the_middle(clips, monkeypatch):
    times = iter(range(10**6))
    monkeypatch.setattr(decode.time, "monotonic", lambda: next(times))
    with pytest.raises(UnreadableVideo, match="within 80 s"):
        read_frames(clips("b.mp4"), [59], seconds=80)  # 60 packets are read, not all of 12 decoded
    times = iter(range(10**6))
    assert len(read_frames(clips("b.mp4"), [59], seconds=200)) == 1


def test_a_change_of_size_is_refused(tmp_path):
    small, large = (encode(tmp_path / f"{size}.h264", moving(8, size, size)) for size in (32, 64))
    path = tmp_path / "both.h264"
    path.write_bytes(open(small, "rb").read() + open(large, "rb").read())
    with pytest.raises(UnreadableVideo, match="one size"):
        read_frames(path, lambda n: range(n))


def test_the_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(UnreadableVideo("a.mp4", "damaged")))
    assert str(error) == "a.mp4: damaged" and error.args == ("a.mp4", "damaged")


# torchcodec


def _torchcodec_loads():
    try:
        decode.check_backend("torchcodec")
    except UserError:
        return False
    return True


def test_an_unknown_or_absent_decoder_is_a_user_error(monkeypatch):
    decode.check_backend("pyav")
    with pytest.raises(UserError, match="expected one of pyav"):
        decode.check_backend("decord")
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    with pytest.raises(UserError, match="install torchcodec"):
        decode.check_backend("torchcodec")
    monkeypatch.setattr(av, "__version__", "14.2.0")
    with pytest.raises(UserError, match="14.2.0 is older than 18.*pip install"):
        decode.check_backend("pyav")


@pytest.mark.skipif(not _torchcodec_loads(), reason="torchcodec or FFmpeg is not installed")
@pytest.mark.parametrize("name", ["one.mp4", "b.mp4", "long.mp4", "variable.mp4", "mpeg4.avi", "vp9.webm"])
def test_torchcodec_gives_the_same_frames(clips, name):
    path, count = clips(name), CLIPS[name][0]
    chosen = np.random.default_rng(0).integers(0, count, 8).tolist()
    assert np.array_equal(read_frames(path, chosen, backend="torchcodec"), read_frames(path, chosen))
