"""Decoding one picture: what each kind of file gives, and what is refused instead of waited for."""

import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rmeeto.data.pictures import ENDINGS, MAX_PIXELS, decode, hidden, natural_key, read_file
from tests.limits import run_limited


def _photo(mode="RGB", size=(24, 16)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).convert(mode)


def _bytes(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO")]
    + [(mode, "PNG") for mode in ("L", "LA", "RGBA", "P", "1")]
    + [(mode, "JPEG") for mode in ("L", "CMYK", "YCbCr")]
    + [("LAB", "TIFF")],
)  # fmt: skip
def test_every_kind_of_picture_becomes_rgb_as_pillow_makes_it(mode, kind):
    data = _bytes(_photo(mode), kind)
    found = decode(data)
    assert (found.mode, found.size) == ("RGB", (24, 16))
    assert np.array_equal(found, Image.open(io.BytesIO(data)).convert("RGB"))


def test_transparency_is_left_out_as_in_timm():
    clear = _photo("RGB")
    clear.putalpha(0)
    assert np.array_equal(decode(_bytes(clear, "PNG")), _photo())


def test_orientation_in_exif_is_not_applied_as_in_timm():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(_bytes(_photo(), "JPEG", exif=exif)).size == (24, 16)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = decode(data).getpixel((4, 4))
        assert red > 240 and blue < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (20000, 78), (128, 0), (129, 1), (65535, 255)])
def test_16_bit_grey_is_scaled_and_not_clipped(kind, value, expected):
    data = _bytes(Image.fromarray(np.full((4, 4), value, np.uint16)), kind)  # v / 257, rounded
    assert decode(data).getpixel((2, 2)) == (expected,) * 3


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused(kind):
    with pytest.raises(ValueError, match=r"32-bit numbers \(mode [IF]\).*save it with 8 or 16 bits"):
        decode(_bytes(Image.fromarray(np.full((4, 4), 7, kind)), "TIFF"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"
PSD = b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">II", 9, 9) + b"\0\x08\0\3"


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", EPS, PSD])
def test_what_no_ending_stands_for_is_not_tried(data):
    with pytest.raises(ValueError, match="^no picture of JPEG, PNG"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_picture_that_is_cut_short_is_refused(kind):
    data = _bytes(_photo(size=(64, 64)), kind)
    for share in (0.5, 0.9):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            decode(data[: int(share * len(data))])


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    data = _bytes(_photo(size=(2048, 2048)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="2048 x 2048 pixels in 20.. scans"):
        decode(data[:-2] + 2000 * scan + data[-2:])
    assert decode(data[:-2] + 20 * scan + data[-2:]).size == (2048, 2048)


def _empty_png(width, height, rows):
    """A 1-bit PNG that claims a size and holds some of its rows, all black."""
    packer, line = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_more_pixels_than_the_limit_are_refused_before_they_take_memory():
    width = MAX_PIXELS // 10_000 + 1
    with pytest.raises(Image.DecompressionBombError):
        decode(_empty_png(width, 10_000, 0))
    with pytest.raises(ValueError, match="6000 x 6000 pixels; expected at most 33,554,432"):
        decode(_empty_png(6000, 6000, 0), max_pixels=1 << 25)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.symlink("/dev/zero", tmp_path / "endless.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink("nowhere", tmp_path / "dangling.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
    code = (
        "import sys; from rmeeto.data.pictures import read_file\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_file(path)\n"
        "    except OSError as error: print(error.strerror or error)\n"
    )
    names = ("pipe", "folder", "endless", "socket", "loop", "dangling")
    said = run_limited(code, *(tmp_path / f"{name}.jpg" for name in names)).splitlines()
    assert said[:4] == ["not a regular file"] * 4
    assert "symbolic links" in said[4] and said[5] == "No such file or directory"


def test_a_file_beyond_the_limit_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    code = (
        "import sys; from rmeeto.data.pictures import read_file\n"
        "try: read_file(sys.argv[1])\n"
        "except OSError as error: print(error)"
    )
    assert run_limited(code, tmp_path / "sparse.jpg").strip() == "more than 512 MiB"
    assert read_file(__file__)[:3] == b'"""'


def test_numbers_in_names_sort_by_their_value():
    names = ["10", "9", "b2a10", "b2a9", "B2a1", "a", "²", "0" * 5000 + "8", "1" * 5000]
    assert sorted(names, key=natural_key) == [
        names[7],
        "9",
        "10",
        names[8],
        "a",
        "B2a1",
        "b2a9",
        "b2a10",
        "²",
    ]


def test_hidden_names_are_those_with_a_dot_first_and_macos_folders():
    assert all(map(hidden, (".ipynb_checkpoints", "._1.mp4", ".DS_Store", "__MACOSX")))
    assert not any(map(hidden, ("a.jpg", "_a", "__macosx.jpg")))
    assert ".jpeg" in ENDINGS and ".eps" not in ENDINGS


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "I;16"])
def test_a_png_is_refused_wherever_its_pixels_are_damaged(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    data = file.getvalue()
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    decode(data)
    for at in (*range(start, end, 37), end - 1):
        for damaged in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at] + data[at + 17 :]):
            with pytest.raises(Exception):  # noqa: B017 (decoders raise nearly anything)
                decode(damaged)
