"""A video file as packets, and the fewest of them that give the frames one wants (FFmpeg through PyAV)."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

MAX_BYTES = 1 << 29  # compressed; a clip is held in memory
MAX_PIXELS = 1 << 25  # of a frame
# Where a packet is a frame by the rules of container and codec, so that counting packets counts frames.
EXACT_CONTAINERS = ("mov,mp4", "matroska,webm", "avi")
EXACT_CODECS = ("h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4")
SKIPPING_CODECS = ("h264", "hevc", "mpeg4")  # told packet by packet to leave out what nothing refers to
MAX_EMPTY = 19  # bytes up to which FFmpeg takes an MPEG-4 packet for "as before", which gives no frame


@contextmanager
def open_clip(
    path: str | os.PathLike, seconds: float, check_time: Callable[[], None], threads: int = 1
) -> Iterator[Clip]:
    """Open a video file and read its packets; nothing is decoded yet.

    Args:
        path: of a regular file.
        seconds: that one access to the file may take.
        check_time: called between packets; raises when it is time to give up.
        threads: of the decoder.

    Raises:
        Exception: nearly anything on a damaged file; the message is the reason.
    """
    if not os.path.isfile(path):  # a pipe would wait for ever
        raise FileNotFoundError("not a regular file" if os.path.exists(path) else "no such file")
    if (missing := _promised_size(path) - os.path.getsize(path)) > 0:
        raise EOFError(f"truncated: {missing} bytes are missing")
    with av.open(
        f"file:{os.fspath(path)}",  # so that a colon in the name names no protocol
        container_options={"protocol_whitelist": "file"},  # a playlist must not reach the network
        metadata_errors="replace",
        timeout=seconds,
    ) as container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise ValueError("no video in it that FFmpeg can decode")
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield Clip(container, stream, check_time)


class Clip:
    """The packets of a video, and what decodes them.

    Where a packet is a frame, frame i is the packet with the i-th smallest time stamp. Everywhere else, and where
    the decoder disagrees, frame i is what comes i-th out of a decoder that starts at the beginning.
    """

    def __init__(self, container: InputContainer, stream: av.VideoStream, check_time: Callable[[], None]):
        self._decoder, self._check_time = stream.codec_context, check_time
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
        self._keys = [number for number, packet in enumerate(self._packets) if packet.is_keyframe]
        self._order = self._frame_order(container.format.name)  # None: only decoding tells

    def __len__(self) -> int:
        count = sum(1 for _ in self._decode(self._packets)) if self._order is None else len(self._order)
        if not count:
            raise ValueError("no frame in it")
        return count

    def read(self, choose: Callable[[int], list[int]]) -> np.ndarray:
        """The frames that `choose` picks, given their number, (T, H, W, 3) uint8 RGB."""
        chosen = choose(len(self))
        frames = self._read(set(chosen))
        if self._order is not None and len(frames) < len(set(chosen)):
            self._order = None
            chosen = choose(len(self))
            frames = self._read(set(chosen))
        return np.stack([frames[index] for index in chosen])

    def _read(self, wanted: set[int]) -> dict[int, np.ndarray]:
        if self._order is None:
            numbered = zip(range(max(wanted) + 1), self._decode(self._packets))
        else:
            numbers = {self._packets[self._order[index]].pts: index for index in wanted}
            stops = sorted(self._order[index] for index in wanted)
            numbered = ((numbers.get(frame.pts), frame) for frame in self._seek(stops, numbers))
        convert = _Converter()
        return {number: convert(frame) for number, frame in numbered if number in wanted}

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

    def _decode(
        self, packets: list[av.Packet], wanted: Container[int] | None = None
    ) -> Iterator[av.VideoFrame]:
        """The frames of a run of packets; given `wanted` stamps, others that no frame refers to are left out."""
        self._decoder.flush_buffers()
        skips = wanted is not None and self._decoder.name in SKIPPING_CODECS
        for packet in packets:
            self._check_time()
            self._decoder.skip_frame = "NONREF" if skips and packet.pts not in wanted else "DEFAULT"
            yield from self._decoder.decode(packet)
        yield from self._decoder.decode(None)


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


def _promised_size(path: str | os.PathLike) -> int:
    """Bytes that an AVI or Matroska file says it has, which FFmpeg does not check; 0 where it does not say."""
    with open(path, "rb") as file:
        head = file.read(128)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size == 0xFFFFFFFF else size + 8
    segment = head.find(b"\x18\x53\x80\x67")
    if head[:4] != b"\x1a\x45\xdf\xa3" or not 0 < segment < len(head) - 12:
        return 0
    start = segment + 4
    width = 9 - head[start].bit_length()  # the leading zeros say how many bytes the number has
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[start : start + width], "big") & unknown
    return 0 if size == unknown else start + width + size
