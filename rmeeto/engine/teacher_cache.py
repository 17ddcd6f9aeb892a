"""What a teacher says of each sample, kept on disk: further runs over the same micro-batches skip the teacher.

A micro-batch is a pure function of seed, epoch and its number over all processes (see `rmeeto.engine.split`), samples
that are mixed with others among them, so epoch and number say where its answers stand. An epoch is a file of entries of
one size, each written in place by the process whose micro-batch it is, with a digest of all that it is of: an entry
that is missing, half written, damaged or of another cache is asked for anew. The teacher's input is in an entry as a
sketch of every sample, so that answers to other images are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rmeeto.engine.dist import RankError, World
from rmeeto.engine.record import differences
from rmeeto.errors import UserError, shown
from rmeeto.json_file import read_json, write_json

FORMAT = 1
_DIGEST = 16  # bytes
_PROBES = 4  # numbers of a sample's sketch
_CLOSE = 1e-3  # of the sample's norm: what rounding on another device may change; other images differ by about 1

logger = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What a teacher says of B samples.

    Args:
        log_probs: (B, k) of the k most probable classes, or of all in their order.
        classes: (B, k) which these are; None for all.
    """

    log_probs: Tensor
    classes: Tensor | None = None


class TeacherCache:
    """A folder of a teacher's answers.

    Args:
        folder: made where it is missing.
        made_of: all that the answers depend on, as plain values; the folder belongs to it from the first run on.
        num_classes: of the teacher.
        top: most probable classes of a sample that are kept; of the others it is known what they sum up to.

    Attributes:
        found, asked: micro-batches of this process whose answers were there, and that the teacher was asked for.

    Raises:
        UserError: the folder holds answers of another kind, or cannot be written.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any], num_classes: int, top: int, world: World) -> None:
        self.folder, self._world, self._num_classes = folder, world, num_classes
        self._top = min(top, num_classes)
        self._index = None if self._top == num_classes else "<u2" if num_classes <= 2**16 else "<u4"
        made_of = {"format": FORMAT, **made_of, "num_classes": num_classes, "top": self._top}
        self._key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).digest()
        world.on_main(lambda: self._claim(json.loads(json.dumps(made_of))))
        self.found = self.asked = 0
        self._file: tuple[int, int] = -1, -1  # epoch, descriptor
        self._place = -1, -1, torch.empty(0)  # epoch, number, sketch of what is next
        self._late = world.device.type == "cuda"  # compared a micro-batch later, so that nothing waits for the GPU
        self._unchecked: tuple[Any, ...] | None = None
        self._signs = torch.empty(0)
        self._told = False

    def find(self, epoch: int, number: int, images: Tensor) -> Answers | None:
        """The answers to a micro-batch, on the CPU; None where there are none, which `keep` is to write.

        Args:
            epoch: from 0.
            number: of the micro-batch, over all processes.
            images: (B, ...) its samples, mixed if they are.

        Raises:
            UserError: the answers are to other images.
        """
        sketch = self._sketch(images)
        self._place = epoch, number, sketch
        size = self._size(len(images))
        entry = os.pread(self._open(epoch), size, number * size)
        digest, content = entry[:_DIGEST], entry[_DIGEST:]
        if len(entry) == size and any(digest):  # else never written: a hole of the file
            if digest == self._digest(epoch, number, content):
                written, answers = self._read(content, len(images))
                self._compare(sketch, written, epoch, number)
                if answers is not None:
                    self.found += 1
                    return answers
            self._tell(f"an entry of {self.folder} is damaged: the teacher is asked anew")
        self.asked += 1
        return None

    def keep(self, logits: Tensor) -> Answers:
        """Write the (B, K) answers of a teacher to the micro-batch that `find` was asked for.

        Returns:
            What `find` will give, on the device of the logits.
        """
        answers = Answers(torch.log_softmax(logits.float(), dim=-1))
        if self._index is not None:
            answers = Answers(*answers.log_probs.topk(self._top, dim=-1))
        epoch, number, sketch = self._place
        content = sketch.cpu().numpy().astype("<f4").tobytes() + answers.log_probs.cpu().numpy().astype("<f4").tobytes()
        if answers.classes is not None:
            content += answers.classes.cpu().numpy().astype(self._index).tobytes()
        entry = self._digest(epoch, number, content) + content
        try:
            written = os.pwrite(self._open(epoch), entry, number * len(entry))
            if written < len(entry):
                raise OSError(f"{written} of {len(entry)} bytes were taken")
        except OSError as error:  # a full disk: the run needs no cache
            self._tell(f"{self.folder} cannot be written ({error}); the run goes on without")
        return answers

    def close(self) -> None:
        """Let go of the file.

        Raises:
            UserError: the last answers were to other images.
        """
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is not None:
            self._check(*unchecked)
        if self._file[1] >= 0:
            os.close(self._file[1])
        self._file = -1, -1

    def _claim(self, made_of: dict[str, Any]) -> None:
        path = self.folder / "cache.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with contextlib.suppress(OSError):  # some network file systems lock no folders
                    fcntl.flock(place, fcntl.LOCK_EX)  # runs may start together
                if not path.exists():
                    if any(self.folder.iterdir()):
                        raise UserError(
                            f"{self.folder} holds other files than a teacher's answers; give another "
                            "distill.teacher_cache."
                        )
                    write_json(path, made_of)
            finally:
                os.close(place)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot hold a teacher's answers ({error}); give another distill.teacher_cache."
            ) from None
        if found := differences(read_json(path), made_of, ()):
            raise UserError(
                f"{self.folder} holds a teacher's answers to something else: {'; '.join(found[:3])}; give another "
                "distill.teacher_cache."
            )

    def _open(self, epoch: int) -> int:
        """The descriptor of an epoch's file."""
        if self._file[0] != epoch:
            self.close()
            path = self.folder / f"epoch{epoch}.bin"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)  # on a machine with a disk of its own
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(path, flags, 0o666)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)
                    raise OSError("it is no regular file")
            except OSError as error:
                raise self._error(f"{path} cannot be opened ({error}); give another distill.teacher_cache.") from None
            self._file = epoch, descriptor
        return self._file[1]

    def _size(self, samples: int) -> int:
        """Bytes of an entry."""
        index = 0 if self._index is None else np.dtype(self._index).itemsize
        return _DIGEST + samples * (4 * _PROBES + self._top * (4 + index))

    def _digest(self, epoch: int, number: int, content: bytes) -> bytes:
        place = f"{epoch} {number} ".encode()
        return hashlib.blake2b(place + content, digest_size=_DIGEST, key=self._key).digest()

    def _read(self, content: bytes, samples: int) -> tuple[np.ndarray, Answers | None]:
        """Sketches and answers of an entry; None for numbers that no teacher says."""
        sketch = np.frombuffer(content, "<f4", samples * _PROBES).reshape(samples, -1)
        count, at = samples * self._top, sketch.nbytes
        log_probs = np.frombuffer(content, "<f4", count, at).reshape(samples, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.exp(log_probs).sum(1)
        least = 0 if self._index else 0.999
        sound = np.isfinite(log_probs).all() and bool(((least <= sums) & (sums <= 1.001)).all())
        if self._index is None:
            return sketch, Answers(torch.from_numpy(log_probs.copy())) if sound else None
        classes = np.frombuffer(content, self._index, count, at + log_probs.nbytes).reshape(samples, -1)
        ordered = np.sort(classes, axis=1)
        if not sound or not (classes < self._num_classes).all() or (ordered[:, 1:] == ordered[:, :-1]).any():
            return sketch, None
        return sketch, Answers(torch.from_numpy(log_probs.copy()), torch.from_numpy(classes.astype(np.int64)))

    def _sketch(self, images: Tensor) -> Tensor:
        """(B, probes) of each sample: sums of its numbers with random signs, as shares of its norm, and the norm."""
        flat = images.detach().flatten(1).float()
        if self._signs.shape[:1] != flat.shape[1:] or self._signs.device != flat.device:
            generator = torch.Generator().manual_seed(FORMAT)
            bits = torch.randint(2, (flat.shape[1], _PROBES - 1), generator=generator)
            self._signs = (2.0 * bits - 1).to(flat.device)
        with torch.autocast(flat.device.type, enabled=False):
            norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            sums = flat @ self._signs / norm.clamp_min(1e-6)
        return torch.cat([sums, norm], dim=1)

    def _compare(self, *found: Any) -> None:
        now = self._unchecked if self._late else found
        self._unchecked = found if self._late else None
        if now is not None:
            self._check(*now)

    def _check(self, sketch: Tensor, written: np.ndarray, epoch: int, number: int) -> None:
        own = sketch.cpu().numpy()
        scale = np.ones_like(own)
        scale[:, -1] = np.maximum(own[:, -1], 1e-6)
        if not (np.abs(own - written) <= _CLOSE * scale).all():
            raise self._error(
                f"{self.folder} holds a teacher's answers to other images (epoch {epoch + 1}, micro-batch {number}): "
                "the files, or the packages that augment them, have changed; give another distill.teacher_cache."
            )

    def _error(self, text: str) -> UserError:
        return UserError(text) if self._world.size == 1 else RankError(f"rank {self._world.rank}: {text}")

    def _tell(self, text: str) -> None:
        if not self._told:
            self._told = True
            logger.warning(shown(text))
