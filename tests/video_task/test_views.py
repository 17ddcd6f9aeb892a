"""The test on several views: averaged once, the same for any number of processes, merged again from files."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from rmeeto.engine import World
from rmeeto.errors import UserError
from video_task.views import Views, evaluate_views, main, merge_views

CLASSES, VIDEOS, VIEWS = 7, 11, 6


def cpu(rank=0, size=1):
    return World(torch.device("cpu"), rank=rank, size=size)


def logits_of(video: int, view: int) -> torch.Tensor:
    return 2 * torch.randn(CLASSES, generator=torch.Generator().manual_seed(100 * video + view))


class Shares:
    """One rank's share of a test whose clips hold their logits; batches are cut where they happen to end."""

    def __init__(self, rank=0, world_size=1, unreadable=(), batch=4):
        self.videos = [v for v in range(rank, VIDEOS, world_size) if v not in unreadable]
        self.missing = [v for v in unreadable if v % world_size == rank]
        self.batch = batch

    def test_batches(self):
        pairs = [(video, view) for video in self.videos for view in range(VIEWS)]
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            clips = torch.stack([logits_of(*pair) for pair in part])
            videos, views = (torch.tensor(column) for column in zip(*part))
            yield clips, videos % CLASSES, videos, views

    def unreadable_videos(self):
        return self.missing


def expected(unreadable=()):
    right1 = right5 = 0
    losses = []
    for video in set(range(VIDEOS)) - set(unreadable):
        mean = torch.stack([logits_of(video, view).softmax(0) for view in range(VIEWS)]).double().mean(0)
        order = mean.argsort(descending=True).tolist()
        right1 += order[0] == video % CLASSES
        right5 += video % CLASSES in order[:5]
        losses.append(-mean[video % CLASSES].log().item())
    return {
        "top1": 100 * right1 / VIDEOS,
        "top5": 100 * right5 / VIDEOS,
        "loss": pytest.approx(np.mean(losses), rel=1e-6),
        "count": VIDEOS,
        "unreadable": len(unreadable),
    }


@pytest.mark.parametrize("unreadable", [(), (2, 5)])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_softmax_is_averaged_over_the_views_of_each_video(tmp_path, unreadable, batch):
    data = Shares(unreadable=unreadable, batch=batch)
    result = evaluate_views(nn.Identity(), data, cpu(), tmp_path)
    assert 0 < result["top1"] < result["top5"] < 100
    assert result == expected(unreadable)


class OneOf(World):
    """A process of several, without the others: what they would agree on comes from `said`."""

    said: dict = {}

    def all_reduce(self, tensor, op="SUM"):
        return tensor

    def gather(self, value):
        return [value]

    def on_main(self, function):
        return self.said.setdefault(self.size, function())


@pytest.fixture
def test_of(tmp_path, monkeypatch):
    """Do a test as several processes do, in a folder of its own; gives the files that they write."""

    def run(name: str, size: int = 1, unreadable=()) -> list:
        monkeypatch.setattr(OneOf, "said", {})
        for rank in range(size):
            world = OneOf(torch.device("cpu"), rank=rank, size=size)
            try:
                evaluate_views(nn.Identity(), Shares(rank, size, unreadable), world, tmp_path / name)
            except UserError as error:
                assert "no video could be read" in str(error), "a share may be empty, the whole is not"
        return [tmp_path / name / "views" / f"rank{rank}.npz" for rank in range(size)]

    return run


@pytest.mark.parametrize("unreadable", [(), (2, 5), (1, 4, 7, 10)])
def test_files_of_all_ranks_give_the_result_again(test_of, unreadable):
    files = test_of("a", 3, unreadable)
    assert merge_views(files) == expected(unreadable), "also where one rank could read none of its videos"
    assert merge_views(files[::-1]) == expected(unreadable)
    assert merge_views(test_of("b", 13, unreadable)) == expected(unreadable), "two ranks have no video at all"


def test_files_that_are_not_one_whole_test_are_refused(test_of):
    one, two = test_of("one", 3), test_of("two", 3)
    (alone,) = test_of("alone")
    for files, message in (
        ([one[0], two[1], one[2]], f"{two[1]} is of another test than {one[0]}"),
        ([*one, *two], f"{two[0]} is of another test than {one[0]}"),
        ([alone, *test_of("again")], "again/views/rank0.npz is of another test than"),
        ([*one, one[1]], f"{one[1]} is of rank 1, as {one[1]} is"),
        ([one[2], one[0]], f"{one[1]} is missing: 3 processes tested, and 2 files are given"),
        ([], "no files"),
    ):
        with pytest.raises(UserError) as caught:
            merge_views(files)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_does_not_say_its_test_is_refused(test_of, tmp_path):
    with np.load(*test_of("a")) as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in Views._fields})
    with pytest.raises(UserError, match="old.npz does not say which test it is of.*test again"):
        merge_views([tmp_path / "old.npz"])


def test_a_file_holds_every_view(test_of):
    with np.load(*test_of("a", unreadable=(4,))) as file:
        assert file["logits"].shape == ((VIDEOS - 1) * VIEWS, CLASSES) and file["logits"].dtype == np.float32
        pairs = set(zip(file["videos"].tolist(), file["views"].tolist()))
        assert pairs == {(v, w) for v in range(VIDEOS) if v != 4 for w in range(VIEWS)}
        assert file["unreadable"].tolist() == [4]
        assert np.array_equal(file["targets"], file["videos"] % CLASSES)


def test_the_command_merges_files(test_of, capsys):
    assert main([str(file) for file in test_of("a", 2)]) == 0
    assert json.loads(capsys.readouterr().out) == expected()


def test_a_reader_who_leaves_is_no_traceback(test_of, monkeypatch):
    files = [str(file) for file in test_of("a")]
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as left:
        monkeypatch.setattr(sys, "stdout", left)
        assert main(files) == 1
    # leaving the block flushes once more, as the exit does, and that raises nothing either


def test_what_cannot_be_merged_is_one_error(test_of, tmp_path, capsys):
    (good,) = test_of("a")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:500])
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    np.savez(tmp_path / "five.npz", logits=np.zeros((1, 5)), targets=[0], videos=[0], views=[0], unreadable=[])
    for files, message in (
        (["absent.npz"], "absent.npz cannot be read as a file of views"),
        ([tmp_path / "cut.npz"], "cut.npz cannot be read"),
        ([tmp_path / "other.npz"], "other.npz cannot be read"),
        ([tmp_path / "array.npy"], "array.npy cannot be read"),
        ([good, tmp_path / "five.npz"], "five.npz does not say which test it is of"),
    ):
        assert main([str(file) for file in files]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


def test_nothing_to_test_and_outputs_that_are_not_finite_are_errors(tmp_path):
    with pytest.raises(UserError, match="no video could be read, 11 could not"):
        evaluate_views(nn.Identity(), Shares(unreadable=range(VIDEOS)), cpu(), tmp_path)

    class Broken(nn.Module):
        def forward(self, x):
            return x * float("nan")

    with pytest.raises(UserError, match="not finite in the test"):
        evaluate_views(Broken(), Shares(), cpu(), tmp_path)


def test_a_confident_mistake_is_no_error(tmp_path):
    class Sure(nn.Module):
        def forward(self, x):
            return torch.full_like(x, -1e4).index_fill_(1, torch.tensor([6]), 1e4)

    result = evaluate_views(Sure(), Shares(), cpu(), tmp_path)
    assert np.isfinite(result["loss"]) and result["top1"] == pytest.approx(100 / VIDEOS)
