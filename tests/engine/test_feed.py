"""Batches on their way to the model."""

import pytest
import torch

from rmeeto.engine.feed import on_device
from rmeeto.errors import UserError

CPU = torch.device("cpu")


def _batches(asked, count=3):
    for number in range(count):
        asked.append(number)
        yield torch.full((2,), number), torch.tensor(number)


def test_without_a_gpu_a_batch_is_fetched_when_it_is_asked_for():
    asked = []
    batches = on_device(_batches(asked), CPU)
    assert asked == []
    assert next(batches)[0].tolist() == [0, 0] and asked == [0]
    assert [target.item() for _, target in batches] == [1, 2]


def test_an_error_in_reading_a_batch_arrives():
    def broken():
        yield from _batches([], 1)
        raise UserError("gone")

    batches = on_device(broken(), CPU)
    next(batches)
    with pytest.raises(UserError, match="gone"):
        next(batches)


class _Part:
    """A tensor on a GPU, as far as the feed looks at it."""

    def __init__(self, log, number):
        self.log, self.number = log, number

    def to(self, device, non_blocking=False):
        self.log.append(f"copy {self.number}")
        assert non_blocking
        return self

    def record_stream(self, stream):
        self.log.append(f"keep {self.number} for {stream.name}")


class _Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def __enter__(self):
        self.log.append(f"on {self.name}")

    def __exit__(self, *_):
        self.log.append("off")


def test_on_a_gpu_the_next_batch_is_copied_on_a_stream_of_its_own_before_the_one_at_hand_is_used(monkeypatch):
    log = []
    main, side = _Stream(log, "main"), _Stream(log, "side")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    for (batch,) in on_device(((_Part(log, number),) for number in range(2)), torch.device("cuda")):
        log.append(f"use {batch.number}")
    fetch = [["on side", f"copy {number}", "off"] for number in range(2)]
    kept = [["main waits for side", f"keep {number} for main"] for number in range(2)]
    expected = [fetch[0], kept[0], fetch[1], ["use 0"], kept[1], ["on side", "off"], ["use 1"]]
    assert log == [line for part in expected for line in part]


@pytest.mark.gpu
def test_on_a_gpu_every_batch_arrives_whole():
    device = torch.device("cuda")
    batches = [(torch.full((1 << 20,), number).pin_memory(), torch.tensor([number])) for number in range(20)]
    for number, (images, target) in enumerate(on_device(iter(batches), device)):
        images = images * 2
        assert (images == 2 * number).all() and target.item() == number
