"""Video data: purity, views, exact evaluation, unreadable clips."""

import hashlib
import logging
import pickle
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from rmeeto.engine import World, evaluate  # noqa: E402
from rmeeto.errors import UserError  # noqa: E402
from video_task.config import VideoDataConfig  # noqa: E402
from video_task.data import batches as batches_module  # noqa: E402
from video_task.data import build_data, read_frames  # noqa: E402
from video_task.data.lists import load_videos  # noqa: E402
from video_task.data.sampling import sparse_view  # noqa: E402
from video_task.data.transforms import ViewTransform  # noqa: E402

PLAIN = {"mixup": 0.0, "cutmix": 0.0}
SIZE = 24


def _config(path, **settings):
    settings = {"data_set": "folder", "batch_size": 3, "num_workers": 0, "num_frames": 4, **settings}
    return VideoDataConfig(data_path=str(path), **settings)


def _build(config, rank=0, world_size=1, seed=0, train=True):
    return build_data(config, img_size=SIZE, rank=rank, world_size=world_size, seed=seed, train=train)


def _equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for ones, others in zip(ours, theirs):
        assert all(torch.equal(a, b) for a, b in zip(ones, others))


def _digests(clips):
    return [hashlib.sha1(clip.numpy().tobytes()).hexdigest() for clip in clips]


def _damage(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])


# training


def test_a_batch_holds_the_views_of_each_clip_side_by_side(videos):
    data = _build(_config(videos, **PLAIN, num_sample=2))
    clips, targets = next(data.train_batches(0))
    assert clips.shape == (6, 3, 4, SIZE, SIZE) and clips.dtype == torch.float32
    assert targets.dtype == torch.int64 and torch.equal(targets[::2], targets[1::2])
    assert len(set(_digests(clips))) == 6
    assert (data.num_train, data.num_eval, data.num_test, data.batches_per_epoch) == (16, 6, 6, 5)
    assert (data.class_names, data.num_classes) == (["ant", "bee"], 2)


def test_every_clip_is_decoded_once_for_all_its_views(videos, monkeypatch):
    read = []
    monkeypatch.setattr(
        batches_module, "read_frames", lambda path, *a, **k: read.append(path) or read_frames(path, *a, **k)
    )
    list(_build(_config(videos, num_sample=4, batch_size=4)).train_batches(0))
    assert len(read) == len(set(read)) == 16


def test_targets_are_soft_with_mixup(videos):
    clips, targets = next(_build(_config(videos)).train_batches(0))
    assert clips.shape == (6, 3, 4, SIZE, SIZE) and clips.is_contiguous()
    assert targets.shape == (6, 2) and torch.allclose(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_later_start_gives_the_tail_of_the_whole_epoch_bit_for_bit(videos, num_workers):
    config = _config(videos, num_workers=num_workers)
    whole = list(_build(config).train_batches(3))
    fresh = _build(config)
    next(fresh.train_batches(0))  # whatever happened before
    _equal(fresh.train_batches(3, 2), whole[2:])


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_global_generators(videos):
    expected = list(_build(_config(videos)).train_batches(1))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    _equal(_build(_config(videos)).train_batches(1), expected)
    _equal(_build(_config(videos, num_workers=2)).train_batches(1), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_streams_stay_untouched(videos, num_workers):
    data = _build(_config(videos, num_workers=num_workers, max_train_batches=2))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    for _ in data.train_batches(0):
        assert states() == before
    list(data.eval_batches()), list(data.test_batches())
    assert states() == before


def test_seed_epoch_rank_and_batch_each_change_the_clips(videos):
    config = _config(videos, batch_size=2)

    def first(seed, epoch, rank, start):
        return next(_build(config, rank, 2, seed).train_batches(epoch, start))[0]

    base = first(0, 0, 0, 0)
    for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not torch.equal(first(*key), base)


def test_ranks_share_an_epoch_without_overlap_and_with_equally_many_batches(videos, monkeypatch):
    read = []
    monkeypatch.setattr(
        batches_module, "read_frames", lambda path, *a, **k: read.append(path) or read_frames(path, *a, **k)
    )
    ranks = [_build(_config(videos, batch_size=2), rank, 3) for rank in range(3)]
    assert {rank.batches_per_epoch for rank in ranks} == {2}
    for rank in ranks:
        list(rank.train_batches(2))
    assert len(read) == len(set(read)) == 12


def test_frames_are_drawn_anew_every_epoch_sparsely_or_densely(videos, monkeypatch):
    drawn = []

    def spy(path, choose, **settings):
        drawn.append(tuple(choose(100)))
        return read_frames(path, choose, **settings)

    monkeypatch.setattr(batches_module, "read_frames", spy)
    for sampling in ("sparse", "dense"):
        drawn.clear()
        data = _build(_config(videos, sampling=sampling, sampling_rate=2))
        list(data.train_batches(0)), list(data.train_batches(1))
        assert len(set(drawn)) > 20
        steps = {b - a for frames in drawn for a, b in zip(frames, frames[1:])}
        assert (steps == {2}) == (sampling == "dense")


def test_without_augmentation_the_views_are_the_middle_of_the_frames(videos):
    clips, targets = next(_build(_config(videos, augment=False, num_sample=2)).train_batches(0))
    assert targets.dtype == torch.int64 and torch.equal(clips[::2], clips[1::2])


def test_limits_cut_epochs_and_evaluations_short(videos):
    data = _build(_config(videos, batch_size=2, max_train_batches=2, max_eval_batches=1))
    assert data.batches_per_epoch == 2 == len(list(data.train_batches(0)))
    assert sum(len(targets) for _, targets in data.eval_batches()) == 2
    with pytest.raises(UserError, match="less than one batch of 20; lower --batch_size"):
        _build(_config(videos, batch_size=20))


def test_clips_are_mirrored_unless_left_and_right_are_classes(videos, caplog):
    assert _build(_config(videos))._flips()
    assert not _build(_config(videos, flip=False))._flips()
    for split in ("train", "val"):
        (videos / split / "ant").rename(videos / split / "3 to the left")
        (videos / split / "bee").rename(videos / split / "3 to the Right")
    with caplog.at_level(logging.INFO):
        assert not _build(_config(videos))._flips()
    assert "not mirrored" in caplog.text
    assert _build(_config(videos, flip=True))._flips()


def test_batches_can_be_sent_to_spawned_workers(videos):
    data = _build(_config(videos))
    for batches in (data._eval, data._test):
        _equal([pickle.loads(pickle.dumps(batches))[0][:4]], [batches[0][:4]])
    pickle.loads(pickle.dumps((data._train_transform, data._finish)))


# evaluation


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_sees_the_middle_of_every_video_exactly_once(videos, world_size):
    config = _config(videos, batch_size=2)
    source = load_videos(config)["val"]
    middle = ViewTransform(config, SIZE)
    expected = Counter()
    for index in range(len(source)):
        frames = read_frames(source.path(index), lambda n: sparse_view(4, n))
        expected[_digests(middle(frames))[0], int(source.targets[index])] += 1
    seen = Counter()
    for rank in range(world_size):
        for clips, targets in _build(config, rank, world_size).eval_batches():
            assert len(clips) <= 2
            seen.update(zip(_digests(clips), targets.tolist()))
    assert seen == expected


@pytest.mark.parametrize("batch_size", [2, 5, 12, 30])
@pytest.mark.parametrize("world_size", [1, 4])
def test_the_test_gives_every_view_of_every_video_exactly_once(videos, world_size, batch_size):
    config = _config(videos, batch_size=batch_size, test_num_segment=4, test_num_crop=3, num_frames=2)
    source = load_videos(config)["test"]
    seen, ranks_of = {}, {}
    for rank in range(world_size):
        data = _build(config, rank, world_size, train=False)
        for clips, targets, video_ids, view_ids in data.test_batches():
            assert len(clips) <= batch_size
            for clip, target, video, view in zip(clips, targets.tolist(), video_ids.tolist(), view_ids.tolist()):
                assert (video, view) not in seen and target == source.targets[video]
                seen[video, view] = clip
                ranks_of.setdefault(video, set()).add(rank)
    assert set(seen) == {(video, view) for video in range(6) for view in range(12)}
    assert all(len(ranks) == 1 for ranks in ranks_of.values())
    crops = ViewTransform(config, SIZE, 3)
    for view, (segment, crop) in enumerate(data.views):
        frames = read_frames(source.path(4), partial(sparse_view, 2, segment=segment, num_segments=4))
        assert torch.equal(seen[4, view], crops(frames)[crop])


def test_evaluation_without_training_videos(videos):
    import shutil

    shutil.rmtree(videos / "train")
    data = _build(_config(videos), train=False)
    assert (data.num_train, data.batches_per_epoch, data.num_eval) == (0, 0, 6)
    assert sum(len(targets) for _, targets in data.eval_batches()) == 6


# unreadable clips


def test_another_clip_takes_the_place_of_an_unreadable_one_in_training(videos, caplog):
    _damage(videos / "train" / "ant" / "1.mp4")
    (videos / "train" / "bee" / "2.mp4").write_bytes(b"")
    config = _config(videos, max_unreadable=0.2, batch_size=4)
    first, second = _build(config), _build(replace(config, num_workers=2))
    whole = list(first.train_batches(0))
    assert all(len(clips) == 8 for clips, _ in whole)
    _equal(second.train_batches(0), whole)  # whichever process met it
    list(first.train_batches(1))
    report = first.report()
    assert report["unreadable_train"] == 2 and report["unreadable_eval"] == 0
    names = sorted(name[len(str(videos)) :] for name in report["files"])
    assert names == ["/train/ant/1.mp4", "/train/bee/2.mp4"]
    assert "2.mp4 (Invalid data" in caplog.text and "another one takes its place" in caplog.text


def test_too_many_unreadable_clips_stop_the_training(videos):
    for number in range(3):
        _damage(videos / "train" / "ant" / f"{number}.mp4")
    data = _build(_config(videos, max_unreadable=0.1, batch_size=4))
    with pytest.raises(UserError, match=r"\d of 16 training clips are unreadable .*ant.*max_unreadable"):
        list(data.train_batches(0))


def test_a_clip_is_redrawn_a_limited_number_of_times(videos):
    for path in (videos / "train").rglob("*.mp4"):
        _damage(path)
    data = _build(_config(videos, max_unreadable=1.0, max_redraws=3, batch_size=4))
    with pytest.raises(UserError, match="training clips are unreadable"):
        next(data.train_batches(0))
    assert 1 <= data.report()["unreadable_train"] <= 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_leaves_unreadable_videos_out_and_counts_them_anew(videos, num_workers, caplog):
    _damage(videos / "val" / "ant" / "1.mp4")
    data = _build(_config(videos, batch_size=2, num_workers=num_workers))
    for _ in range(2):
        assert sum(len(targets) for _, targets in data.eval_batches()) == 5
        ids = torch.cat([video_ids for _, _, video_ids, _ in data.test_batches()])
        assert sorted(ids.unique().tolist()) == [0, 2, 3, 4, 5] and len(ids) == 5 * 12
        assert data.report() == {
            "unreadable_train": 0,
            "unreadable_eval": 1,
            "unreadable_test": 1,
            "files": [str(videos / "val" / "ant" / "1.mp4")],
        }
    assert caplog.text.count("it counts as wrong") == 1


def test_the_engine_counts_an_unreadable_video_as_wrong(videos):
    _damage(videos / "val" / "bee" / "0.mp4")

    class Ant(torch.nn.Module):
        def forward(self, clips):
            return torch.tensor([[1.0, 0.0]]).expand(len(clips), 2)

    result = evaluate(Ant(), _build(_config(videos)), World(torch.device("cpu")))
    assert (result["count"], result["unreadable"], result["top1"]) == (6, 1, 50.0)


def test_a_slow_clip_counts_as_unreadable(videos):
    data = _build(_config(videos, decode_seconds=1e-9))
    assert not list(data.eval_batches()) and data.report()["unreadable_eval"] == 6


def test_an_absent_decoder_is_a_user_error(videos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    with pytest.raises(UserError, match="--decoder torchcodec does not load"):
        _build(_config(videos, decoder="torchcodec"))


def test_a_changed_training_video_is_seen_in_its_class(videos):
    before = _build(_config(videos)).contents()
    assert {name: count for name, (count, _) in before.items()} == {"ant": 8, "bee": 8}
    _damage(videos / "train" / "bee" / "3.mp4")
    after = _build(_config(videos)).contents()
    assert after["ant"] == before["ant"] and after["bee"] != before["bee"]
