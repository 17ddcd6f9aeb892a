"""Local matching: against exact matching with the far pairs left out, in tiles and as a whole."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import rmeeto
from image_task.models import Deit, VideoMamba, Vim
from rmeeto.measure import count_flops
from rmeeto.measure.visualize import trace
from rmeeto.merge import MergeConfig, match
from rmeeto.merge.tiles import covers, num_pairs
from rmeeto.merge.tokens import grid_cells
from tests.test_patch import upstream
from video_task.models import VideoMamba as VideoMambaVideo

GRID = (4, 6, 5)


def coordinates(cell: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    _, height, width = grid
    return torch.stack([cell // (height * width), cell // width % height, cell % width], -1)


def naive_pairs(metric, r, class_index, window, grid, position, distance="cosine"):
    """(source, destination) of each merge, by positions in the sequence, one sample at a time."""
    metric = F.normalize(metric.double(), dim=-1)
    similar = {
        "cosine": lambda a, b: a @ b,
        "l1": lambda a, b: -abs(a - b).sum(),
        "l2": lambda a, b: -norm(a - b),
    }
    metric, norm, pairs = metric.numpy(), np.linalg.norm, []
    for sample, at in zip(metric, coordinates(position, grid).tolist()):
        order = [i for i in range(len(sample)) if i != class_index]
        best = []
        for i, source in enumerate(order[0::2]):
            scored = []
            for destination in order[1::2]:
                if all(abs(a - b) < reach for a, b, reach in zip(at[source], at[destination], window)):
                    scored.append((-similar[distance](sample[source], sample[destination]), destination))
            beside = order[1::2][min(i, len(order) // 2 - 1)]
            best.append((*(min(scored) if scored else (float("inf"), beside)), source))
        best.sort(key=lambda entry: (entry[0], entry[2]))
        pairs.append({(source, destination) for _, destination, source in best[:r]})
    return pairs


def pairs_of(plan):
    """(source, destination) of a plan, by positions before the merge."""
    before = plan.keep.gather(1, plan.destination)
    return [set(zip(s.tolist(), d.tolist())) for s, d in zip(plan.source, before)]


def merged_position(grid, batch, gone, class_index, seed=0):
    """Cells of the tokens that are left when ``gone`` of the grid's, other ones in each sample, have merged."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1] * grid[2]
    rows = [torch.randperm(cells, generator=generator)[: cells - gone].sort().values for _ in range(batch)]
    return torch.stack([torch.cat([row[:class_index], row.new_tensor([-1]), row[class_index:]]) for row in rows])


@pytest.mark.parametrize(("class_index", "distance"), [(0, "cosine"), (17, "l1"), (5, "l2")])
@pytest.mark.parametrize("gone", [0, 51, 100])
@pytest.mark.parametrize("window", [(1, 2, 2), (2, 1, 3), (2, 2, 9), (9, 2, 2), (1, 9, 9), (2, 3, 2)])
def test_a_source_looks_at_what_is_near(window, gone, class_index, distance):
    position = merged_position(GRID, 2, gone, class_index)
    metric = torch.randn(2, position.shape[1], 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r = (position.shape[1] - 1) // 3
    plan = match(metric, r, class_index, distance, window=window, grid=GRID, position=position)
    assert pairs_of(plan) == naive_pairs(metric, r, class_index, window, GRID, position, distance)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(2, 7)),
    window=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
def test_tiles_and_the_whole_matrix_find_the_same(grid, window, share, seed):
    """`num_pairs` decides between them; with the decision turned round the plan is the same."""
    cells = grid[0] * grid[1] * grid[2]
    position = merged_position(grid, 2, int(share * max(cells - 4, 0)), 0, seed)
    if position.shape[1] < 4:
        return
    metric = torch.randn(2, position.shape[1], 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plans = []
    for pairs in (0, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rmeeto.merge.tiles.num_pairs", lambda *_, pairs=pairs: pairs)
            plans.append(match(metric, position.shape[1] // 3, 0, window=window, grid=grid, position=position))
    assert pairs_of(plans[0]) == pairs_of(plans[1])
    assert torch.equal(plans[0].keep, plans[1].keep)


@pytest.mark.parametrize("class_position", ["proportional", "exact"])
@pytest.mark.parametrize("window", [GRID, (9, 9, 9), (4, 6, 6)])
def test_a_window_as_large_as_the_grid_is_exact_matching(window, class_position):
    metric = torch.randn(3, 121, 16)
    options = {"class_position": class_position}
    exact = match(metric, 30, 60, **options)
    local = match(metric, 30, 60, window=window, grid=GRID, **options)
    for name in ("keep", "source", "destination"):
        assert torch.equal(getattr(exact, name), getattr(local, name))
    assert torch.equal(torch.as_tensor(exact.class_index), torch.as_tensor(local.class_index))


def test_a_source_without_a_destination_near_it_comes_last():
    """Tokens at the corners of the grid, two of them side by side."""
    position = torch.tensor([[-1, 0, 1, 4, 25, 119]])
    metric = torch.ones(1, 6, 4)
    metric[:, 5] = -1
    plan = match(metric, 1, 0, window=(1, 2, 2), grid=GRID, position=position)
    assert pairs_of(plan) == [{(1, 2)}]
    plan = match(metric, 2, 0, window=(1, 2, 2), grid=GRID, position=position)
    assert pairs_of(plan) == [{(1, 2), (3, 4)}], "the next in the sequence takes it"


def test_ties_go_to_the_lower_position():
    metric = torch.ones(1, 121, 4)
    plan = match(metric, 5, 0, window=(2, 2, 2), grid=GRID)
    assert plan.source.tolist() == [[1, 3, 5, 7, 9]]
    assert pairs_of(plan)[0] == naive_pairs(metric, 5, 0, (2, 2, 2), GRID, grid_cells(121, 0, "cpu")[None])[0]


def test_batches_and_samples_alone_agree():
    position = merged_position(GRID, 3, 40, 0)
    metric = torch.randn(3, position.shape[1], 8)
    settings = {"window": (2, 2, 3), "grid": GRID}
    together = pairs_of(match(metric, 20, 0, position=position, **settings))
    alone = [pairs_of(match(m[None], 20, 0, position=p[None], **settings))[0] for m, p in zip(metric, position)]
    assert together == alone


def test_an_empty_batch_stays_empty(video):
    video.merge_config = MergeConfig(r=4, window=(1, 2, 2))
    assert video(torch.randn(0, 3, 4, 32, 32)).shape == (0, 5)


# models


@pytest.fixture
def video():
    torch.manual_seed(0)
    return VideoMambaVideo(32, 4, 32, 6, num_classes=5, num_frames=4).eval()


MODELS = {
    "vim": lambda: Vim(32, 4, 4, 32, 6, num_classes=5),
    "videomamba": lambda: VideoMamba(32, 4, 32, 6, num_classes=5),
    "video": lambda: VideoMambaVideo(32, 4, 32, 6, num_classes=5, num_frames=4),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("config", [{}, {"metric": "B"}, {"class_position": "exact"}, {"prune": True, "odd": True}])
def test_a_model_with_a_window_as_large_as_its_grid_is_the_exact_one(name, config):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = torch.randn(2, 3, *((4, 32, 32) if name == "video" else (32, 32)))
    outputs = []
    for window in (None, (4, 8, 8)):
        model.merge_config = MergeConfig(r=9, window=window, **config)
        with torch.no_grad():
            outputs.append(model(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_merge_with_what_is_near_only(name):
    """A merged token's originals lie within the windows that the merges have passed."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    grid = (4, 8, 8) if name == "video" else (1, 8, 8)
    model.merge_config = MergeConfig(r=15, window=(1, 2, 2))
    x = torch.randn(2, 3, *((4, 32, 32) if name == "video" else (32, 32)))
    source = trace(model, x)
    at = coordinates(grid_cells(source.shape[2], model.class_index, "cpu"), grid)
    merged = 0
    for token in source.flatten(0, 1):
        members = at[token > 0]
        reach = (members.max(0).values - members.min(0).values).tolist()
        assert reach[0] == 0 and max(reach) <= 2 * 2  # two merges, each one cell to either side
        merged += len(members) > 1
    assert merged > 5
    assert source.sum() == source.shape[0] * source.shape[2]


def test_gradients_flow_and_positions_are_carried(video):
    video.merge_config = MergeConfig(r=40, window=(2, 2, 2))
    state = video.encode(torch.randn(2, 3, 4, 32, 32))
    assert state.cell.shape == (2, video.num_tokens[-1])
    assert (state.cell[:, 0] == -1).all()
    assert (state.cell[:, 1:].diff(dim=1) > 0).all(), "in their order, and no two at one place"
    video(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in video.parameters())


def test_exact_models_carry_no_positions(video):
    video.merge_config = MergeConfig(r=40)
    assert video.encode(torch.randn(1, 3, 4, 32, 32)).cell is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_fp32(dtype):
    metric = torch.randn(2, 121, 8).to(dtype)
    settings = {"window": (2, 2, 3), "grid": GRID}
    assert pairs_of(match(metric, 20, 0, **settings)) == pairs_of(match(metric.float(), 20, 0, **settings))


# cost


def test_pairs_are_linear_in_the_tokens_and_never_more_than_all():
    window = (2, 3, 3)
    counts = [num_pairs(window, (frames, 14, 14), frames * 196 + 1) for frames in (8, 16, 32)]
    assert counts[1] == 2 * counts[0] and counts[2] == 4 * counts[0]
    assert counts[0] < 784 * 784 / 4
    assert num_pairs(window, (8, 14, 14), 101) is None, "few tokens: all pairs are fewer"
    assert num_pairs((8, 14, 14), (8, 14, 14), 1569) is None and covers((8, 14, 14), (8, 14, 14))


def test_what_is_compared_is_what_is_counted(monkeypatch):
    """Under both conventions, at every merge of a model."""
    compared = []

    def counting(sources, destinations, distance="cosine"):
        compared.append(sources.shape[:-1].numel() // batch * destinations.shape[1])
        return sources @ destinations.transpose(1, 2)

    for rule in ("exact", "window"):  # also the names of the functions in them
        monkeypatch.setattr(sys.modules[f"rmeeto.merge.rules.{rule}"], "similarity", counting)
    batch, window, grid = 3, (1, 2, 2), (4, 8, 8)
    model = VideoMambaVideo(32, 4, 32, 6, num_classes=5, num_frames=4, merge=MergeConfig(r=90, window=window))
    model(torch.randn(batch, 3, 4, 32, 32))
    tokens = [257, 167]
    pairs = [num_pairs(window, grid, n) for n in tokens]
    assert compared == [count or ((n - 1) - (n - 1) // 2) * ((n - 1) // 2) for count, n in zip(pairs, tokens)]
    cost = sum(6 * n * 32 + (2 * 32 * count if count else 32 * n**2 // 2) for count, n in zip(pairs, tokens))
    assert count_flops(model, (4, 32, 32)).parts["matching"] == cost
    assert count_flops(model, (4, 32, 32), "full").parts["matching"] == cost


@pytest.mark.parametrize("r", [40, 88])
def test_merging_saves_with_a_window(r):
    """With exact matching r = 40 costs more than no merging (golden/flops.json)."""
    with torch.device("meta"):
        model = timm.create_model("videomamba_video_tiny_patch16_224")
    totals = {}
    for name, merge in {
        "dense": None,
        "exact": MergeConfig(r=r),
        "local": MergeConfig(r=r, window=(2, 3, 3)),
    }.items():
        model.merge_config = merge
        totals[name] = count_flops(model, (8, 224, 224)).total
    assert totals["local"] < totals["dense"] and totals["local"] < totals["exact"]
    assert (totals["exact"] > totals["dense"]) == (r == 40)
    assert totals["local"] < 0.95 * totals["dense"]


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": (1, 1, 1)}, "holds no token but the source"),
        ({"window": (2, 3)}, "expected frames, rows and columns"),
        ({"window": (0, 3, 3)}, "each 1 or more"),
        ({"window": (2.0, 3, 3)}, "each 1 or more"),
        ({"window": 3}, "expected frames, rows and columns"),
        ({"window": (2, 3, 3), "keep_order": False}, "needs ordered tokens"),
        ({"window": (2, 3, 3), "shuffle": "odd-even"}, "no shuffle"),
        ({"window": (2, 3, 3), "neighbour": 3}, "neighbour=1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig(r=5, **settings)


def test_settings_survive_their_plain_form():
    config = MergeConfig(r=5, window=[2, 3, 3])
    assert config.window == (2, 3, 3)
    assert config.to_dict()["window"] == [2, 3, 3]
    assert MergeConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "without the grid"),
        ({"grid": (4, 6, 6)}, "121 tokens are not those of grid"),
        ({"grid": GRID, "class_index": torch.tensor([3, 4])}, "give the position"),
        (
            {"grid": GRID, "position": torch.zeros(2, 7, dtype=torch.long)},
            "position is of 7 tokens; expected 121",
        ),
        ({"grid": GRID, "keep_order": False}, "tokens of a scan in their order"),
        ({"grid": GRID, "neighbour": 2}, "the most similar destination"),
        ({"grid": GRID, "class_index": None, "prefix": 1}, "tokens of a scan"),
    ],
)
def test_a_matching_that_lacks_something_is_refused(arguments, message):
    arguments = {"class_index": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        match(torch.randn(2, 121, 8), 5, window=(2, 2, 2), **arguments)


def test_transformers_and_foreign_models_refuse_it():
    config = MergeConfig(r=2, window=(1, 3, 3))
    with pytest.raises(ValueError, match="window=.* has no effect"):
        Deit(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, merge=config)
    with pytest.raises(ValueError, match="window=.* needs a model of image_task.models"):
        rmeeto.apply(upstream(), config)
