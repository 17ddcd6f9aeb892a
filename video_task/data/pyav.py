"""A video file as packets, and the fewest of them that give the frames one wants (FFmpeg through PyAV)."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from rmeeto.data.pictures import check_regular
from video_task.data.faults import Errors, complaint, heard, promised_size, whole_matroska, whole_riff, whole_stream

# What opens a file. Of FFmpeg's others some would open further files that a playlist or script names.
DEMUXERS = (
    "mov matroska webm avi mpegts mpeg mpegvideo flv asf ogg gif apng h264 hevc m4v mjpeg ivf obu mxf dv rm nut "
    "yuv4mpegpipe wav mp3"  # the last two hold sound, and are named so
).replace(" ", ",")
MAX_BYTES = 1 << 29  # compressed; a clip is held in memory
# Where a packet is a frame by the rules of container and codec, so that counting packets counts frames.
EXACT_CONTAINERS = ("mov,mp4", "matroska,webm", "avi")
EXACT_CODECS = ("h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4")
SKIPPING_CODECS = ("h264", "hevc", "mpeg4")  # told packet by packet to leave out what nothing refers to
Keep = Callable[[np.ndarray], np.ndarray]
MAX_EMPTY = 19  # bytes up to which FFmpeg takes an MPEG-4 packet for "as before", which gives no frame


@contextmanager
def open_clip(
    path: str | os.PathLike, seconds: float, check_time: Callable[[], None], max_pixels: int, threads: int = 1
) -> Iterator[Clip]:
    """Open a video file and read its packets; nothing is decoded yet.

    Args:
        path: of a regular file.
        seconds: that one access to the file may take.
        check_time: called between packets; raises when it is time to give up.
        max_pixels: of a frame; the decoder refuses larger ones.
        threads: of the decoder.

    Raises:
        Exception: nearly anything on a damaged file; the message is the reason.
    """
    check_regular(path)
    if (missing := promised_size(path) - os.path.getsize(path)) > 0:
        raise EOFError(f"truncated: {missing} bytes are missing")
    with (
        heard() if threads == 1 else nullcontext([]) as errors,
        _container(path, seconds, errors) as container,
    ):
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("no video in it that FFmpeg can decode")
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield Clip(container, stream, check_time, errors)


def _container(path: str | os.PathLike, seconds: float, errors: Errors) -> InputContainer:
    name = f"file:{os.fspath(path)}"  # so that a colon in the name names no protocol
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        return av.open(name, container_options=options, metadata_errors="replace", timeout=seconds)
    except av.FFmpegError as error:
        if any("whitelist" in message for *_, message in errors):
            raise ValueError("no format that is read here, such as a playlist") from error
        raise


class Clip:
    """The packets of a video, and what decodes them.

    Where a packet is a frame, frame i is the packet with the i-th smallest time stamp. Everywhere else, and where
    the decoder disagrees, frame i is what comes i-th out of a decoder that starts at the beginning. What that one
    or the demuxer calls an error makes the clip unreadable: frames after it may have other numbers.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: av.VideoStream,
        check_time: Callable[[], None],
        errors: Errors,
    ):
        self._decoder, self._check_time, self._errors = stream.codec_context, check_time, errors
        self._packets: list[av.Packet] = []
        size = 0
        for packet in container.demux(stream):
            check_time()
            if packet.is_corrupt:
                raise EOFError(f"truncated or damaged after {len(self._packets)} packets")
            if packet.size:
                self._packets.append(packet)
                size += packet.size
            if size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB of video; cut it into clips")
        if said := complaint(errors, container.format.name):
            raise ValueError(f"damaged: {said}")
        errors.clear()
        self._check_structure(container, stream)
        self._keys = [number for number, packet in enumerate(self._packets) if packet.is_keyframe]
        self._order = self._frame_order(container.format.name)  # None: only decoding tells

    def _check_structure(self, container: InputContainer, stream: av.VideoStream) -> None:
        """Refuse what a demuxer steps over without a word, which would give later frames other numbers."""
        name, path = container.format.name, container.name.removeprefix("file:")
        # An AVI file announces empty frames too, so that fewer packets alone mean nothing.
        if name == "avi" and len(self._packets) < stream.frames and not whole_riff(path):
            raise ValueError(f"damaged: {stream.frames} frames are announced, {len(self._packets)} found")
        if name.startswith("matroska") and not whole_matroska(path):
            raise ValueError("damaged: something among its frames that is none of them")
        if name == "mpegts" and not whole_stream(path):
            raise ValueError("damaged: packets without their mark")

    def __len__(self) -> int:
        count = sum(1 for _ in self._decode(self._packets)) if self._order is None else len(self._order)
        if not count:
            raise ValueError("no frame in it")
        return count

    def read(self, choose: Callable[[int], list[int]], keep: Keep) -> list[np.ndarray]:
        """The frames that `choose` picks, given their number; `keep` makes of each (H, W, 3) RGB what is kept."""
        chosen = choose(len(self))
        frames = self._read(set(chosen), keep)
        said = complaint(self._errors, self._decoder.name, after_seek=True)
        if self._order is not None and (said or len(frames) < len(set(chosen))):
            self._order = None
            self._errors.clear()
            chosen = choose(len(self))
            frames = self._read(set(chosen), keep)
        return [frames[index] for index in chosen]

    def in_order(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, np.ndarray]]:
        """The frames whose number is wanted, with it, from the first to the last."""
        self._order, convert = None, _Converter()  # frame i is what comes i-th, and an error ends it
        for number, frame in enumerate(self._decode(self._packets)):
            if wanted(number):
                yield number, convert(frame)

    def _read(self, wanted: set[int], keep: Keep) -> dict[int, np.ndarray]:
        if self._order is None:
            numbered = zip(range(max(wanted) + 1), self._decode(self._packets))
        else:
            numbers = {self._packets[self._order[index]].pts: index for index in wanted}
            stops = sorted(self._order[index] for index in wanted)
            numbered = ((numbers.get(frame.pts), frame) for frame in self._seek(stops, numbers))
        convert = _Converter()
        return {number: keep(convert(frame)) for number, frame in numbered if number in wanted}

    def _frame_order(self, container: str) -> list[int] | None:
        """Packet number of every frame, or None where a packet need not be a frame or has no own time stamp."""
        stamps = [packet.pts for packet in self._packets]
        exact = (
            container.startswith(EXACT_CONTAINERS)
            and self._decoder.name in EXACT_CODECS
            and (self._decoder.name != "mpeg4" or all(packet.size > MAX_EMPTY for packet in self._packets))
            and self._decoder.field_order in (0, 1)  # unknown, progressive
            and None not in stamps
            and len(set(stamps)) == len(stamps)
            and (container != "avi" or stamps == [packet.dts for packet in self._packets])  # else guessed
            and self._keys[:1] == [0]
            and min(stamps) == stamps[0]
        )
        if not exact:
            return None
        shown = [number for number, packet in enumerate(self._packets) if not packet.is_discard]
        return sorted(shown, key=stamps.__getitem__)

    def _seek(self, stops: list[int], wanted: Container[int]) -> Iterator[av.VideoFrame]:
        """Decode the packets `stops`, each from the key frame before it unless the decoder is past that."""
        runs: list[list[av.Packet]] = []
        at = -1
        for stop in stops:
            start = self._key_before(stop)
            if start > at:
                runs.append([])
                at = start
            runs[-1] += self._packets[at : stop + 1]
            at = stop + 1
        for run in runs:
            last = None
            for frame in self._decode(run, wanted):
                if frame.pts is None or (last is not None and frame.pts <= last):
                    return  # what is missing now makes `read` start again from the beginning
                last = frame.pts
                yield frame

    def _key_before(self, stop: int) -> int:
        key = bisect_right(self._keys, stop) - 1
        while self._packets[self._keys[key]].pts > self._packets[stop].pts:  # shown before that key frame
            key -= 1
        return self._keys[key]

    def _decode(self, packets: list[av.Packet], wanted: Container[int] | None = None) -> Iterator[av.VideoFrame]:
        """The frames of a run of packets; given `wanted` stamps, others that no frame refers to are left out."""
        self._decoder.flush_buffers()
        skips = wanted is not None and self._decoder.name in SKIPPING_CODECS
        for packet in packets:
            self._check_time()
            self._decoder.skip_frame = "NONREF" if skips and packet.pts not in wanted else "DEFAULT"
            yield from self._decoder.decode(packet)
            self._check_errors()
        yield from self._decoder.decode(None)
        self._check_errors()

    def _check_errors(self) -> None:
        """Refuse the clip where a decoder that has started at its beginning has found an error."""
        if self._order is None and self._errors and (said := complaint(self._errors, self._decoder.name)):
            raise ValueError(f"damaged: {said}")


class _Converter:
    """From a decoded frame to (H, W, 3) RGB, upright; all frames must have one size."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._shape: tuple[int, ...] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.is_corrupt:
            raise ValueError("damaged: a frame was decoded with errors")
        image = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            image = upright(image, np.frombuffer(matrix, np.int32))
        if self._shape not in (None, image.shape):
            raise ValueError(f"frames of {self._shape} and {image.shape}; expected one size")
        self._shape = image.shape
        return image


def upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror an image by quarter turns, as a display matrix says.

    Args:
        image: (H, W, 3).
        matrix: (9,), a b u c d v x y w: column x, row y belong at column ax + cy, row bx + dy.
    """
    a, b, _, c, d = matrix[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
