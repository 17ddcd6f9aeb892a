"""A teacher's answers on disk: they are the live ones, belong to their micro-batch alone, and survive what happens."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rmeeto.engine import DistillLoss, OptimConfig, fit, start
from rmeeto.engine.distill import distillation_loss, divergence_of_top
from rmeeto.engine.teacher_cache import TeacherCache
from rmeeto.errors import UserError
from tests import forked
from tests.engine.test_loop import Cut, cut_at, log_of, same
from tests.engine.toy import CLASSES, ToyData, cpu, toy_folder, toy_model, toy_run

MADE_OF = {"teacher": "toy", "seed": 0}


class Counted(torch.nn.Module):
    """A teacher that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.asked = toy_model(seed=3), 0

    def forward(self, images):
        self.asked += 1
        return self.model(images)


def cache_in(folder, top=CLASSES, world=None, **made_of) -> TeacherCache:
    return TeacherCache(folder, {**MADE_OF, **made_of}, CLASSES, top, world or cpu())


def train(path, cache=None, data=None, world=None, accumulation=1, **run):
    """The toy trained with the teacher; the losses of its log, and how often the teacher was asked."""
    world, teacher = world or cpu(), Counted()
    optim = OptimConfig(lr=5e-2, epochs=2, accumulation=accumulation)
    with toy_folder(path, world) as folder:
        criterion = DistillLoss(teacher, cache=cache)
        data = data or ToyData(world.rank, world.size)
        fit(toy_model(), data, criterion, optim, toy_run(path, log_every=1, **run), world, folder)
    return [line["loss"] for line in log_of(path)], teacher.asked


@pytest.fixture
def live(tmp_path):
    return train(tmp_path / "live")[0]


@pytest.mark.parametrize("top", [CLASSES, 2])
def test_a_second_run_reads_what_the_first_has_written(tmp_path, live, top):
    """Both give the same to the last bit; with all classes it is what the live teacher gives."""
    losses = []
    for run, asked in (("first", 24), ("second", 0)):
        cache = cache_in(tmp_path / "cache", top)
        loss, count = train(tmp_path / run, cache)
        losses.append(loss)
        assert count == asked == cache.asked and cache.found == 24 - asked
    assert losses[0] == losses[1]
    if top == CLASSES:
        assert losses[0] == live
    else:
        assert "teacher_rest" in log_of(tmp_path / "second")[0]


def test_runs_that_start_together_share_a_new_folder(tmp_path):
    """Rows that run side by side open the same cache within the same second."""
    for number in range(10):
        folder = tmp_path / f"cache{number}"
        with ThreadPoolExecutor(8) as pool:
            for opened in [pool.submit(cache_in, folder) for _ in range(8)]:
                opened.result()
        assert [path.name for path in folder.iterdir()] == ["cache.json"]


def test_what_is_not_kept_counts_as_one_class():
    """The divergence of the top classes is that of distributions in which the others are one, and at most the whole."""
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(16, 9), torch.randn(16, 9, requires_grad=True)
    whole = distillation_loss(student, teacher)
    found = []
    for top in (1, 3, 8):
        answers = TeacherCacheStub(top).keep(teacher)
        kl, rest = divergence_of_top(student, answers)
        order = teacher.argsort(descending=True)
        merged = []
        for logits in (teacher, student):
            probs = logits.softmax(1).gather(1, order)
            merged.append(torch.cat([probs[:, :top], probs[:, top:].sum(1, keepdim=True)], 1).log())
        torch.testing.assert_close(kl, distillation_loss(merged[1], merged[0]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rest, merged[0][:, -1].exp().mean(), rtol=1e-4, atol=1e-6)
        assert torch.autograd.grad(kl, student)[0].isfinite().all()
        found.append(kl.item())
    assert found == sorted(found) and found[-1] <= whole.item() * (1 + 1e-6)


class TeacherCacheStub(TeacherCache):
    """One that writes nothing."""

    def __init__(self, top: int) -> None:
        self._top, self._index, self._key, self._told = top, "<u2", b"", True
        self._place = 0, 0, torch.zeros(0)
        self._open = lambda epoch: -1  # which no write takes
        self.folder = None


def test_a_certain_teacher_has_a_finite_loss():
    """Nothing is left for the others, and none of it is NaN."""
    answers = TeacherCacheStub(1).keep(torch.tensor([[200.0, 0.0, 0.0]]))
    student = torch.tensor([[0.0, 1.0, 300.0]], requires_grad=True)
    kl, rest = divergence_of_top(student, answers)
    assert kl.item() == pytest.approx(300) and rest.item() == 0
    assert torch.autograd.grad(kl, student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("made_of", "named"),
    [({"seed": 1}, "seed 0 there, 1 here"), ({"teacher": "big"}, "teacher toy there, big here")],
)
def test_a_cache_of_something_else_is_refused_in_one_line(tmp_path, made_of, named):
    cache_in(tmp_path / "cache")
    with pytest.raises(UserError, match=f"answers to something else: {named}; give another") as caught:
        cache_in(tmp_path / "cache", **made_of)
    assert len(caught.value.args) == 1
    with pytest.raises(UserError, match="top 6 there, 2 here"):
        cache_in(tmp_path / "cache", top=2)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "photos.txt").touch()
    with pytest.raises(UserError, match="holds other files than a teacher's answers"):
        cache_in(tmp_path)
    assert os.listdir(tmp_path) == ["photos.txt"]


def test_answers_to_other_images_are_refused(tmp_path):
    """Such as those of another version of what augments them; rounding is none."""
    cache, images = cache_in(tmp_path / "cache"), torch.randn(4, 3, 4, 4)
    assert cache.find(0, 5, images) is None
    kept = cache.keep(torch.randn(4, CLASSES))
    torch.testing.assert_close(cache.find(0, 5, images * (1 + 1e-6)).log_probs, kept.log_probs)
    images[2, 0, 1, 1] += 0.5
    with pytest.raises(UserError, match=r"answers to other images \(epoch 1, micro-batch 5\)"):
        cache.find(0, 5, images)


def test_on_a_gpu_other_images_are_refused_a_micro_batch_later(tmp_path):
    cache, images = cache_in(tmp_path / "cache"), torch.randn(4, 3, 4, 4)
    cache._late = True
    assert cache.find(0, 5, images) is None
    cache.keep(torch.randn(4, CLASSES))
    assert cache.find(0, 5, images) is not None
    assert cache.find(0, 5, images + 1) is not None
    with pytest.raises(UserError, match="answers to other images"):
        cache.close()


def written(tmp_path) -> tuple[TeacherCache, torch.Tensor, bytearray]:
    cache, images = cache_in(tmp_path / "cache", top=2), torch.randn(4, 3, 4, 4)
    for number in range(3):
        assert cache.find(0, number, images) is None
        cache.keep(torch.randn(4, CLASSES))
    return cache, images, bytearray((tmp_path / "cache" / "epoch0.bin").read_bytes())


@pytest.mark.parametrize("damage", ["flip", "cut", "moved", "holes"])
def test_what_is_damaged_is_asked_for_anew(tmp_path, caplog, damage):
    cache, images, data = written(tmp_path)
    size = len(data) // 3
    if damage == "flip":
        data[size + 40] ^= 4
    elif damage == "cut":
        del data[2 * size - 7 :]
    elif damage == "moved":  # a digest is of the place, too
        data[size : 2 * size] = data[:size]
    else:
        data[size : 2 * size] = bytes(size)
    (tmp_path / "cache" / "epoch0.bin").write_bytes(data)
    there = [cache.find(0, number, images) is not None for number in range(3)]
    assert there == [True, False, damage != "cut"]
    assert ("damaged" in caplog.text) == (damage in ("flip", "moved"))
    cache.find(0, 1, images)
    cache.keep(torch.randn(4, CLASSES))
    assert cache.find(0, 1, images) is not None


def test_numbers_that_no_teacher_says_are_not_believed(tmp_path):
    """Even where their digest is right: whoever makes a cache can compute it."""
    cache, images, data = written(tmp_path)
    size = len(data) // 3
    for at, value in (
        (16 + 64, b"\x00\x00\xc0\x7f"),
        (16 + 64, b"\x00\x00\x80\x40"),
        (size - 2, b"\xff\xff"),
        (size - 2, data[size - 4 : size - 2]),  # a class twice
    ):
        entry = bytearray(data[:size])
        entry[at : at + len(value)] = value
        entry[:16] = cache._digest(0, 0, bytes(entry[16:]))
        (tmp_path / "cache" / "epoch0.bin").write_bytes(entry)
        assert cache.find(0, 0, images) is None


def test_answers_on_all_classes_are_whole_distributions(tmp_path):
    cache, images = cache_in(tmp_path / "cache"), torch.randn(4, 3, 4, 4)
    assert cache.find(0, 0, images) is None
    cache.keep(torch.randn(4, CLASSES))
    content = bytearray((tmp_path / "cache" / "epoch0.bin").read_bytes()[16:])
    content[64:68] = np.float32(-50).tobytes()
    (tmp_path / "cache" / "epoch0.bin").write_bytes(cache._digest(0, 0, bytes(content)) + content)
    assert cache.find(0, 0, images) is None


def test_files_that_are_none_are_refused(tmp_path):
    cache, images = cache_in(tmp_path / "cache"), torch.randn(4, 3, 4, 4)
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "cache" / "epoch0.bin").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "cache" / "epoch1.bin")
    for epoch in (0, 1):
        with pytest.raises(UserError, match=f"epoch{epoch}.bin cannot be opened"):
            cache.find(epoch, 0, images)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    (tmp_path / "cache" / "cache.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match="nested too deeply"):
        cache_in(tmp_path / "cache")


def test_a_full_disk_costs_the_cache_alone(tmp_path, live, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rmeeto.engine.teacher_cache.os.pwrite", full)
    losses, asked = train(tmp_path / "full", cache_in(tmp_path / "cache"))
    assert losses == live and asked == 24
    assert caplog.text.count("No space left on device") == 1


def test_a_killed_writer_loses_nothing(tmp_path, live):
    """A run that is cut and resumed is the whole one, and leaves a whole cache."""
    with pytest.raises(Cut):
        train(tmp_path / "cut", cache_in(tmp_path / "cache"), cut_at(ToyData(), 0, 7), checkpoint_every=2)
    losses, asked = train(tmp_path / "cut", cache_in(tmp_path / "cache"), resume=True, checkpoint_every=2)
    assert losses == live and asked == 24 - 7
    assert train(tmp_path / "again", cache_in(tmp_path / "cache")) == (live, 0)


def test_several_processes_write_what_any_number_reads(tmp_path):
    """Two processes fill it, and one that accumulates, which does the same steps, is answered from it."""

    def work():
        with start("cpu") as world:
            cache = cache_in(tmp_path / "cache", world=world)
            return train(tmp_path / "two", cache, world=world, accumulation=1)[1]

    assert forked.run(2, work) == [12, 12]
    losses, asked = train(tmp_path / "one", cache_in(tmp_path / "cache"), accumulation=2)
    assert asked == 0
    assert losses == pytest.approx(train(tmp_path / "alone", accumulation=2)[0], rel=1e-6)


def test_what_it_is_made_of_stands_beside_it(tmp_path):
    cache_in(tmp_path / "cache", top=3)
    kept = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert kept == {"format": 1, **MADE_OF, "num_classes": CLASSES, "top": 3}
    assert same(kept, json.loads(json.dumps(kept)))
