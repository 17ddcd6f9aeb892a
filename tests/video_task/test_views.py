"""The test on several views: averaged once, the same for any number of processes, merged again from files."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from rmeeto.engine import World
from rmeeto.errors import UserError
from video_task.views import evaluate_views, main, merge_views

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


def share(path, rank, size, unreadable=()):
    """What a rank of several writes, without the others."""
    alone = World(torch.device("cpu"), rank=rank)
    evaluate_views(nn.Identity(), Shares(rank, size, unreadable), alone, path)
    return path / "views" / f"rank{rank}.npz"


def test_files_of_all_ranks_give_the_result_again(tmp_path):
    files = [share(tmp_path, rank, 3, unreadable=(2, 5)) for rank in range(3)]
    assert merge_views(files) == expected((2, 5))
    assert merge_views(files[::-1]) == expected((2, 5))
    assert merge_views([*files, files[1]]) == expected((2, 5)), "a view counts once, however often it comes"


def test_a_video_that_another_file_has_read_is_not_unreadable(tmp_path):
    damaged = share(tmp_path / "first", 0, 1, unreadable=(4,))
    whole = share(tmp_path / "second", 0, 1)
    assert merge_views([damaged, whole]) == expected()


def test_a_file_holds_every_view(tmp_path):
    with np.load(share(tmp_path, 0, 1, unreadable=(4,))) as file:
        assert file["logits"].shape == ((VIDEOS - 1) * VIEWS, CLASSES) and file["logits"].dtype == np.float32
        pairs = set(zip(file["videos"].tolist(), file["views"].tolist()))
        assert pairs == {(v, w) for v in range(VIDEOS) if v != 4 for w in range(VIEWS)}
        assert file["unreadable"].tolist() == [4]
        assert np.array_equal(file["targets"], file["videos"] % CLASSES)


def test_the_command_merges_files(tmp_path, capsys):
    files = [str(share(tmp_path, rank, 2)) for rank in range(2)]
    assert main(files) == 0
    assert json.loads(capsys.readouterr().out) == expected()


def test_what_cannot_be_merged_is_one_error(tmp_path, capsys):
    (tmp_path / "cut.npz").write_bytes(share(tmp_path, 0, 1).read_bytes()[:500])
    np.savez(tmp_path / "other.npz", logits=np.zeros(3))
    np.savez(
        tmp_path / "five.npz", logits=np.zeros((1, 5)), targets=[0], videos=[0], views=[0], unreadable=[]
    )
    good = tmp_path / "views" / "rank0.npz"
    for files, message in (
        (["absent.npz"], "absent.npz cannot be read as a file of views"),
        ([tmp_path / "cut.npz"], "cut.npz cannot be read"),
        ([tmp_path / "other.npz"], "other.npz cannot be read"),
        ([good, tmp_path / "five.npz"], "different numbers of classes"),
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
