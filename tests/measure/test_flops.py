"""Costs against the recorded counters, the published figures and what torch itself counts."""

from __future__ import annotations

import functools
import json

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import rmeeto
import video_task.models  # noqa: F401  (registers the models)
from image_task.models import Deit, VideoMamba, Vim
from rmeeto.errors import UserError
from rmeeto.measure import count_flops, released_counters, token_reduction_ratio
from rmeeto.merge import MergeConfig
from rmeeto.nn import VisionMamba
from tests.golden_data import FOLDER, Case, names
from tests.test_patch import upstream

RECORDED = {
    key: value
    for key, value in json.loads((FOLDER / "flops.json").read_text())["values"].items()
    if not isinstance(value, str)  # where the released counter crashed
}
SIZES = {"tiny": (192, 24), "small": (384, 24), "base": (768, 24), "middle": (576, 32)}


class Patches3d(nn.Module):
    """Patches of a clip: one frame deep, 16 x 16 pixels."""

    grid_size = (8, 14, 14)

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, embed_dim, (1, 16, 16), (1, 16, 16))


@functools.cache
def dense(family: str, size: str) -> nn.Module:
    width, depth = SIZES[size]
    with torch.device("meta"):
        if family == "videomamba_video":
            return VisionMamba(Patches3d(width), 0, width, depth, num_classes=400, average=False)
        return (Vim if family == "vim" else VideoMamba)(embed_dim=width, depth=depth)


def make(family: str, size: str, merge: MergeConfig | None = None) -> nn.Module:
    """A model without memory for its weights (one each family and size, re-configured)."""
    model = dense(family, size)
    model.merge_config = merge
    return model


def read_key(key: str) -> tuple[str, str, MergeConfig | None]:
    """Family, size and settings of a recorded entry such as ``vim_tiny/r5/B/odd/analytic_counter``."""
    model, setting, *options, counter = key.split("/")
    family, size = model.rsplit("_", 1)
    if setting == "dense":
        return family, size, None
    fields = {"r": int(setting[1:])}
    for option in options:
        if option == "odd":
            fields["odd"] = True
        elif option.startswith("interval"):
            fields["interval"] = int(option.removeprefix("interval"))
        else:
            fields["metric"] = option
    if counter.endswith("compare11"):
        fields["final_tokens"] = 76
    return family, size, MergeConfig(**fields)


def known_defect(key: str) -> bool:
    """Entries that record a defect of the released counters (golden/README.md, "Defects")."""
    ignores_odd = key.startswith("videomamba_image") and "/odd/" in key
    ignores_clamp = "/r20/" in key and key.endswith("analytic_counter")
    doubles_delta = key.endswith("delta/hook_counter")
    return ignores_odd or ignores_clamp or doubles_delta


EXACT = [key for key in RECORDED if not known_defect(key)]


@pytest.mark.parametrize("key", EXACT)
def test_recorded_counter_is_met_to_the_last_digit(key):
    """By what a model really costs, in the paper's convention."""
    family, size, merge = read_key(key)
    total, parts = count_flops(make(family, size, merge), 224)
    recorded = {name: round(value * 1e9) for name, value in RECORDED[key].items()}
    if "total_G" in recorded:
        assert total == recorded["total_G"]
        return
    # This counter embeds one patch more than there are.
    total += SIZES[size][0] * 768
    assert total == recorded["with_merge_cost_G"]
    assert total - parts["matching"] - parts["merging"] == recorded["layers_only_G"]


def test_most_entries_are_free_of_defects():
    assert len(RECORDED) == 116 and len(EXACT) == 95


@pytest.mark.parametrize("key", RECORDED)
def test_the_released_counters_are_met_defects_included(key):
    family, size, merge = read_key(key)
    counters = released_counters(make(family, size, merge), 224)
    recorded = {name: round(value * 1e9) for name, value in RECORDED[key].items()}
    if "hook_counter" in key:
        assert recorded == {"total_G": counters.hook}
    else:
        assert recorded == {"with_merge_cost_G": counters.analytic, "layers_only_G": counters.analytic_layers}


@pytest.mark.parametrize("metric", ["B", "C"])
def test_the_released_hook_counter_crashes_for_two_metrics(metric):
    """Recorded as a message where the number would be."""
    values = json.loads((FOLDER / "flops.json").read_text())["values"]
    assert isinstance(values[f"vim_tiny/r5/{metric}/hook_counter"], str)
    assert released_counters(make("vim", "tiny", MergeConfig(r=5, metric=metric)), 224).hook is None


@pytest.mark.parametrize("merge", [MergeConfig(r=(1,) * 11), MergeConfig(r=5, window=(1, 3, 3))], ids=str)
def test_the_released_counters_know_no_newer_settings(merge):
    with pytest.raises(ValueError, match="one r for all merges and the exact rule"):
        released_counters(make("vim", "tiny", merge), 224)
    with pytest.raises(ValueError, match="got a Deit"):
        released_counters(Deit(32, 8, embed_dim=24, depth=2, num_heads=3), 32)


SMALL = [
    name
    for name in names("vim_small.npz")
    if "flops64" in Case("vim_small.npz", name) and "clamped" not in name  # that counter ignores the clamp
]


@pytest.mark.parametrize("name", SMALL)
def test_small_models_counter_is_met(name):
    case = Case("vim_small.npz", name)
    c = case.config
    merge = MergeConfig(c["num_prune"], c["merge_interval"], c["if_merge_odd"], c["metric"], prune=c["if_prune"])
    model = Vim(112, 16, 16, c["embed_dim"], c["depth"], num_classes=c["num_classes"], merge=merge)
    assert count_flops(model, 112).total + c["embed_dim"] * 768 == case["flops64"]


PUBLISHED = [  # family, size, r; G multiply-accumulates in the paper's convention and in full: dense, merged
    ("vim", "tiny", 5, (1.45, 1.28), (1.82, 1.61)),
    ("vim", "small", 11, (5.08, 3.58), (5.91, 4.16)),
    ("vim", "base", 11, (18.87, 13.21), (20.89, 14.61)),
    ("videomamba_video", "tiny", 88, (11.54, 9.49), (14.52, 11.55)),
    ("videomamba_video", "small", 88, (40.43, 30.99), (47.08, 35.59)),
    ("videomamba_video", "middle", 88, (115.33, 71.71), (130.02, 80.22)),
]


@pytest.mark.parametrize(("family", "size", "r", "paper", "full"), PUBLISHED)
def test_published_figures(family, size, r, paper, full):
    for merge, in_paper, in_full in zip((None, MergeConfig(r=r)), paper, full):
        model = make(family, size, merge)
        assert round(count_flops(model, 224, "paper").total / 1e9, 2) == in_paper
        assert round(count_flops(model, 224, "full").total / 1e9, 2) == in_full


def test_the_conventions_differ_in_the_second_direction_only():
    paper, full = (
        count_flops(make("vim", "tiny", MergeConfig(r=5)), 224, convention).parts for convention in ("paper", "full")
    )
    twice = {"conv", "x_proj", "dt_proj", "scan"}
    assert full == {part: count * 2 if part in twice else count for part, count in paper.items()}
    assert list(full) == [
        *("patch", "in_proj", "conv", "x_proj", "dt_proj", "scan", "out_proj", "matching", "merging", "head")
    ]


def test_what_does_not_run_costs_nothing_in_full():
    unmerged = count_flops(make("vim", "tiny"), 224, "full")
    assert count_flops(make("vim", "tiny", MergeConfig()), 224, "full") == unmerged
    clamped = count_flops(make("vim", "tiny", MergeConfig(r=150)), 224, "full")
    assert clamped.parts["merging"] == 192 * (197 - make("vim", "tiny", MergeConfig(r=150)).num_tokens[-1])


@pytest.mark.parametrize(
    "merge", [None, MergeConfig(r=5), MergeConfig(r=(3, 9), odd=True), MergeConfig(r=99, metric="B")], ids=str
)
def test_torch_counts_the_same_in_what_it_sees_of_a_scan(merge):
    model = Vim((32, 24), 8, 4, embed_dim=24, depth=5, num_classes=7, merge=merge)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 24))
    counts = counter.get_flop_counts()
    parts = count_flops(model, (32, 24), "full").parts
    for part, suffixes in {
        "patch": (".patch_embed.proj",),
        "in_proj": (".in_proj",),
        "x_proj": (".x_proj", ".x_proj_b"),
        "out_proj": (".out_proj",),
        "head": (".head",),
    }.items():
        seen = sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(suffixes))
        assert parts[part] == seen // 2, part


@pytest.mark.parametrize("merge", [None, MergeConfig(r=3), MergeConfig(r=2, metric="K", neighbour=2)], ids=str)
def test_torch_counts_the_same_in_what_it_sees_of_a_transformer(merge):
    model = Deit(32, 8, embed_dim=24, depth=3, num_heads=3, num_classes=7, merge=merge)
    plain = sdpa_kernel(SDPBackend.MATH)  # two products, which every version of torch counts
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 32))
    counts = counter.get_flop_counts()
    parts = count_flops(model, 32).parts
    for part, suffixes in {
        "patch": (".patch_embed.proj",),
        "qkv": (".qkv",),
        "proj": (".attn.proj",),
        "mlp": (".fc1", ".fc2"),
        "head": (".head",),
    }.items():
        seen = sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(suffixes))
        assert parts[part] == seen // 2, part
    inside = [ops for name, ops in counts.items() if name.endswith(".attn")]
    attention = sum(v for ops in inside for op, v in ops.items() if "bmm" in str(op))
    assert parts["attention"] == attention // 2


def test_deit_costs_what_is_known():
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")  # timm's own, without a merge_config
        merged = Deit(embed_dim=384, num_heads=6, merge=MergeConfig(r=11))
    assert round(count_flops(model, 224).total / 1e9, 1) == 4.6
    parts = count_flops(merged, 224).parts
    tokens = [197 - 11 * i for i in range(13)]
    assert parts["mlp"] == sum(8 * 384**2 * t for t in tokens[1:])
    assert parts["attention"] == sum(2 * 384 * t**2 for t in tokens[:-1])
    assert parts["merging"] == 12 * 11 * 384


def test_a_foreign_mamba_costs_what_ours_does():
    foreign = upstream()
    ours = Vim(32, 8, 8, embed_dim=16, depth=5, num_classes=5)
    assert count_flops(foreign, 32) == count_flops(ours, 32)
    ours.merge_config = MergeConfig(r=3)
    rmeeto.apply(foreign, MergeConfig(r=3))
    for convention in ("paper", "full"):
        assert count_flops(foreign, 32, convention) == count_flops(ours, 32, convention)
    assert token_reduction_ratio(foreign) == token_reduction_ratio(ours) > 0


@pytest.mark.parametrize("merge", [MergeConfig(r=3), MergeConfig(r=(4, 3, 2, 1), interval=1)], ids=str)
def test_blocks_that_were_dropped_cost_nothing(merge):
    model = Deit(32, 8, embed_dim=24, depth=4, num_heads=3, num_classes=0, merge=merge)
    whole = count_flops(model, 32).parts
    tokens = model.num_tokens
    model.prune_intermediate_layers([1])
    parts = count_flops(model, 32).parts
    assert model.num_tokens == tokens[:2]
    assert parts["qkv"] == sum(tokens[:2]) * 3 * 24**2 < whole["qkv"]
    assert parts["mlp"] == sum(tokens[1:3]) * 8 * 24**2


@pytest.mark.parametrize("input_size", [224, (224, 224), (3, 224, 224), (1, 3, 224, 224), [3, 224, 224]])
def test_input_sizes_an_image_model_takes(input_size):
    assert count_flops(make("vim", "tiny"), input_size).total == 1448965632


@pytest.mark.parametrize("input_size", [224, (8, 224, 224), (3, 8, 224, 224), (1, 3, 8, 224, 224)])
def test_input_sizes_a_video_model_takes(input_size):
    assert count_flops(make("videomamba_video", "tiny"), input_size).total == 11539043328


@pytest.mark.parametrize(
    ("arguments", "got", "expected"),
    [
        ((192,), "input_size=192 gives (12, 12) patches", "(14, 14)"),
        (((224, 192),), "(14, 12) patches", "(14, 14)"),
        ((8,), "(0, 0) patches", "(14, 14)"),
        (((224,),), "input_size=(224,)", "height, width"),
        ((224, "half"), "convention='half'", "'full'"),
    ],
)
def test_errors_say_what_was_got_and_expected(arguments, got, expected):
    with pytest.raises(ValueError) as error:
        count_flops(make("vim", "tiny"), *arguments)
    assert got in str(error.value) and expected in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("name", ["vim_nano_patch2_16", "vit_tiny_patch16_224", "videomamba_video_nano_patch4_32"])
def test_a_size_that_the_model_refuses_is_refused_though_it_has_as_many_patches(name):
    model = timm.create_model(name)
    *frames, height, width = getattr(model.patch_embed, "input_size", (224, 224))
    assert count_flops(model, (*frames, height, width)) == count_flops(model, (height, width))
    with pytest.raises(UserError, match=rf"input_size=.*{width + 1}\), but this .* takes .*{height}, {width}\)"):
        count_flops(model, (*frames, height, width + 1))


def test_wrong_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(16, 14, 14\) patches.*\(8, 14, 14\)"):
        count_flops(make("videomamba_video", "tiny"), (3, 16, 224, 224))


def test_models_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="Linear; expected a Vision Mamba"):
        count_flops(nn.Linear(2, 2), 224)
    with torch.device("meta"):
        mixer = timm.create_model("mixer_b16_224")
    with pytest.raises(ValueError, match="MlpMixer; expected a Vision Mamba"):
        count_flops(mixer, 224)


def test_nothing_is_run():
    model = make("vim", "base", MergeConfig(r=11))  # on the meta device, where nothing can run
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert count_flops(model, 224)


@pytest.mark.parametrize(("r", "ratio"), [(0, 0.0), (5, 0.14), (10, 0.28), (11, 0.31), (15, 0.42)])
def test_token_reduction_ratio_is_the_papers(r, ratio):
    assert round(token_reduction_ratio(make("vim", "tiny", MergeConfig(r=r))), 2) == ratio
