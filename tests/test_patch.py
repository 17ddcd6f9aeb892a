"""One line puts merging into a model, one line takes it out: ours, timm's Vision Transformers, and upstream's Mamba."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import rmeeto
from image_task.models import Deit, VideoMamba, Vim
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.nn import BiMamba
from tests.golden_data import Case, assert_near, fill, randn

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 5}


class UpstreamBlock(nn.Module):
    """Add, normalise, mix: (hidden, residual) -> (hidden, residual)."""

    def __init__(self, dim, average):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = BiMamba(dim, average=average)

    def forward(self, hidden, residual=None, scale=1.0):
        residual = hidden.float() if residual is None else residual + hidden
        return self.mixer(self.norm(residual)) * scale, residual


class UpstreamMamba(nn.Module):
    """A Vision Mamba as others write it: one forward, the class token put in and read out by position."""

    def __init__(self, img_size, patch_size, dim, depth, num_classes, middle=True, dropout=0.0, pool="token"):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.img_size = (img_size, img_size)
        self.patch_embed.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        patches = (img_size // patch_size) ** 2
        self.position, self.pool = patches // 2 if middle else 0, pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, dim))
        self.pos_drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(UpstreamBlock(dim, average=middle) for _ in range(depth))
        self.norm_f = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        p = self.position
        x = torch.cat([x[:, :p], self.cls_token.expand(len(x), -1, -1), x[:, p:]], dim=1)
        hidden, residual = self.pos_drop(x + self.pos_embed), None
        for _, layer in enumerate(self.layers):
            hidden, residual = layer(hidden, residual, scale=1.0)
        tokens = self.norm_f(residual + hidden)
        return self.head(tokens[:, p] if self.pool == "token" else tokens.mean(1))


def upstream(**kwargs):
    return fill(UpstreamMamba(**{"img_size": 32, "patch_size": 8, "dim": 16, "depth": 5, "num_classes": 5, **kwargs}))


def vit(**kwargs):
    arguments = {**TINY, "embed_dim": 24, "depth": 4, "num_heads": 3, **kwargs}
    return VisionTransformer(**arguments)


MODELS = {
    "vim": lambda: Vim(img_size=32, patch_size=8, stride=8, embed_dim=16, depth=4, num_classes=5),
    "videomamba": lambda: VideoMamba(**TINY, embed_dim=16, depth=4),
    "deit": lambda: Deit(**TINY, embed_dim=24, depth=4),
    "vit": vit,
    "distilled": lambda: timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=4, num_classes=5
    ),
    "augreg": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=4, num_classes=5
    ),
    "registers": lambda: vit(reg_tokens=4, no_embed_class=True, init_values=0.1),
    "siglip": lambda: vit(class_token=False, global_pool="map"),
    "average": lambda: vit(global_pool="avg"),
    "qk_norm": lambda: vit(qk_norm=True),
    "upstream_vim": upstream,
    "upstream_videomamba": lambda: upstream(middle=False),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def x():
    return randn(7, (2, 3, 32, 32))


def test_apply_merges_and_remove_gives_the_same_model_back(model, x):
    kind, state, dense = type(model), copy.deepcopy(model.state_dict()), model(x)
    attributes = set(vars(model))
    assert rmeeto.apply(model, MergeConfig(r=3)) is model
    merged = model(x)
    assert isinstance(merged, torch.Tensor) and merged.shape == dense.shape
    assert not torch.equal(merged, dense) and merged.isfinite().all()
    assert model.num_tokens[-1] < model.num_tokens[0]
    assert list(model.state_dict()) == list(state)
    assert rmeeto.remove(model) is model
    assert type(model) is kind and torch.equal(model(x), dense)
    assert set(vars(model)) == attributes
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[key], state[key]) for key in state)


def test_no_merging_is_the_dense_model_bit_for_bit(model, x):
    dense = model(x)
    for config in (MergeConfig(r=0), None):
        rmeeto.apply(model, config)
        assert torch.equal(model(x), dense)


def test_a_patched_model_is_reconfigured_by_assignment_or_a_second_apply(model, x):
    rmeeto.apply(model, MergeConfig(r=1))
    kind, one = type(model), model(x)
    model.merge_config = MergeConfig(r=3)
    three = model(x)
    rmeeto.apply(model, MergeConfig(r=1))
    assert type(model) is kind
    assert torch.equal(model(x), one) and not torch.equal(three, one)


def test_a_patched_model_can_be_copied_pickled_and_loaded(model, x):
    rmeeto.apply(model, MergeConfig(r=3))
    expected = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), expected)
    twin.merge_config = None
    assert torch.equal(model(x), expected)  # the copy's settings are its own
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), expected) and again.merge_config == MergeConfig(r=3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(model.state_dict())
    twin.merge_config = model.merge_config
    assert torch.equal(twin(x), expected)


def test_merging_trains(model, x):
    rmeeto.apply(model, MergeConfig(r=3)).train()
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_merged_model_compiles_into_one_graph(model, x):
    rmeeto.apply(model, MergeConfig(r=3))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_near(compiled(x), model(x).numpy(), 1e-6)


@pytest.mark.parametrize("middle", [True, False], ids=["vim", "videomamba"])
@pytest.mark.parametrize(
    "config",
    [
        MergeConfig(r=3),
        MergeConfig(r=3, odd=True, keep_order=False),
        MergeConfig(r=2, interval=1, mode="amax", distance="l1"),
        MergeConfig(r=3, prune=True),
        MergeConfig(r=3, neighbour=2, class_position="exact", final_tokens=5),
    ],
    ids=["default", "odd_unordered", "amax", "prune", "exact"],
)
def test_an_upstream_class_merges_as_ours_does(middle, config, x):
    theirs = upstream(middle=middle).eval()
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_classes": 5}
    ours = Vim(**size, stride=8) if middle else VideoMamba(**size)
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    with torch.no_grad():
        assert_near(theirs(x), ours(x).numpy(), 1e-6, "dense")
        rmeeto.apply(theirs, config)
        rmeeto.apply(ours, config)
        assert_near(theirs(x), ours(x).numpy(), 1e-5, "merged")
    assert theirs.num_tokens == ours.num_tokens


@pytest.mark.parametrize("name", ["dense_img64_d48_depth6", "merge_r3", "merge_r20_clamped", "dist_l2", "prune", "odd"])
def test_an_upstream_class_gives_the_recorded_numbers(name):
    case = Case("vim_small.npz", name)
    c = case.config
    model = fill(UpstreamMamba(c["img_size"], c["patch_size"], c["embed_dim"], c["depth"], c["num_classes"])).eval()
    if c["merge"]:
        options = {"r": "num_prune", "interval": "merge_interval", "odd": "if_merge_odd", "prune": "if_prune"}
        options = {option: c[name] for option, name in options.items()}
        rmeeto.apply(model, MergeConfig(**options, keep_order=c["if_order"], distance=c["distance"]))
    with torch.no_grad():
        logits = model(randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"])))
    assert_near(logits, case["logits"], 1e-4, "logits")


def test_a_pool_over_an_upstream_class_sees_every_original_token(x):
    model = rmeeto.apply(upstream(pool="mean").eval(), MergeConfig(r=3))
    ours = Vim(img_size=32, patch_size=8, stride=8, embed_dim=16, depth=5, num_classes=5, merge=MergeConfig(r=3))
    ours.load_state_dict(model.state_dict())
    state = ours.eval().encode(x)
    weighted = (state.hidden * state.size).sum(1) / 17
    assert_near(model(x), ours.head(weighted).detach().numpy(), 1e-5)


def test_the_stem_is_looked_at_without_using_random_numbers_or_mixers(x):
    model = upstream(dropout=0.5)
    for layer in model.layers:
        layer.mixer.forward = None  # a mixer that cannot run here
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    rmeeto.apply(model, MergeConfig(r=3))
    assert torch.equal(torch.rand(4), expected)
    assert model.class_index == 8 and model.num_tokens == [17, 17, 14, 14, 11]


def test_layers_are_the_real_ones_for_whoever_looks_at_them_during_a_pass(x):
    model = rmeeto.apply(upstream().eval(), MergeConfig(r=3))
    real, seen = list(model.layers), []

    def look(*_):  # as another thread's pass, or a hook, may
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(lambda: (list(model.layers), model.layers[-1], model(x[:1]))).result())

    handle = model.layers[2].register_forward_hook(lambda *_: handle.remove() or look())
    whole = model(x)
    (layers, last, alone), *_ = seen
    assert layers == real and last is real[-1]
    assert_near(alone, whole[:1].detach().numpy(), 1e-6)


def test_an_example_input_stands_in_for_an_unknown_input_size(x):
    model = upstream().eval()
    del model.patch_embed.img_size
    with pytest.raises(UserError, match="UpstreamMamba does not say its input size; give an input as example"):
        rmeeto.apply(model, MergeConfig(r=3))
    rmeeto.apply(model, MergeConfig(r=3), example=x)
    assert model(x).shape == (2, 5)


def test_an_average_over_a_merged_transformer_sees_every_original_token(x):
    model = rmeeto.apply(vit(global_pool="avg").eval(), MergeConfig(r=3))
    tokens, maps = model.forward_intermediates(x, indices=1, output_fmt="NLC")
    assert tokens.shape[1] == 17 - 4 * 3 and maps[0].shape[1] == 16
    assert torch.equal(model(x), model.head(model.fc_norm(model.norm(maps[0]).mean(1))))


def test_the_prefix_never_merges_and_stays_first(x):
    for make, prefix in ((MODELS["registers"], 5), (MODELS["distilled"], 2), (MODELS["siglip"], 0)):
        for keep_order in (True, False):
            model = make().eval()
            rmeeto.apply(model, MergeConfig(r=20, keep_order=keep_order))  # clamped to half
            *_, state = model.states(x)
            assert torch.equal(state.target[:, :prefix], torch.arange(prefix).expand(2, -1))
            assert (state.size[:, :prefix] == 1).all()
            assert (state.target[:, prefix:] >= prefix).all()
            assert (state.size.sum(1) == 16 + prefix).all()


def test_gradient_checkpointing_gives_the_same_gradients(x):
    model = rmeeto.apply(vit(), MergeConfig(r=3)).train()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    assert torch.equal(*gradients)


def test_half_precision_stays_half_precision(x):
    model = rmeeto.apply(vit().eval(), MergeConfig(r=3))
    full = model(x)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_near(half.float(), full.detach().numpy(), 0.1)


TRANSFORMER_ERRORS = [
    ({"metric": "B"}, "metric='B'; a Transformer has X, Q, K and V"),
    ({"interval": 4}, "interval=4 has no effect"),
    ({"odd": True}, "odd=True has no effect"),
    ({"class_position": "exact"}, "class_position='exact' has no effect"),
    ({"released_flip": True}, "released_flip=True has no effect"),
    ({"r": (1, 2)}, "r lists 2 values, but 4 blocks merge"),
    ({"r": 3, "neighbour": 8}, "neighbour=8, but a merge of 14 tokens has only 7 destinations"),
]


@pytest.mark.parametrize(("options", "message"), TRANSFORMER_ERRORS)
@pytest.mark.parametrize("make", [MODELS["deit"], vit], ids=["Deit", "VisionTransformer"])
def test_what_a_transformer_cannot_do_is_one_error_that_names_it(make, options, message, x):
    model = make()
    kind = type(model)
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{message}"):
        rmeeto.apply(model, MergeConfig(**options))
    assert type(model) is kind  # left as it was
    with pytest.raises(ValueError, match="expected a MergeConfig"):
        rmeeto.apply(model, {"r": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "delta"}, "metric='delta', but its mixer hands out no parameters"),
        ({"shuffle": "odd-even"}, "shuffle='odd-even' needs a model of image_task.models"),
        ({"r": 3, "neighbour": 9}, "neighbour=9, but a merge of 17 tokens has only 8 destinations"),
    ],
)
def test_what_an_upstream_class_cannot_do_is_one_error_that_names_it(options, message):
    model = upstream()
    with pytest.raises(ValueError, match=f"UpstreamMamba: {message}"):
        rmeeto.apply(model, MergeConfig(**options))
    assert type(model) is UpstreamMamba and type(model.layers) is nn.ModuleList


def test_a_pruned_transformer_is_configured_again_as_it_was(x):
    """r is spread over the blocks that there were; with other blocks gone, those left merge as before."""
    model = rmeeto.apply(vit().eval(), MergeConfig(r=(3, -1.0)))
    model.prune_intermediate_layers([1], prune_norm=False, prune_head=False)
    counts = model.num_tokens
    model.merge_config = model.merge_config
    assert model.num_tokens == counts and len(counts) == 2
    model.merge_config = MergeConfig(r=(1, 2, 0, 0))


def test_a_model_without_a_prefix_gives_maps_as_timms_and_has_no_class_token(x):
    model = vit(class_token=False, global_pool="avg").eval()
    dense = model.forward_intermediates(x, 1, return_prefix_tokens=True, intermediates_only=True)
    rmeeto.apply(model, MergeConfig(r=2))
    merged = model.forward_intermediates(x, 1, return_prefix_tokens=True, intermediates_only=True)
    assert type(merged[0]) is type(dense[0]) and merged[0].shape == dense[0].shape
    registers = rmeeto.apply(vit(class_token=False, reg_tokens=4, global_pool="avg").eval(), MergeConfig(r=2))
    assert {state.class_index for state in registers.states(x)} == {None}


def test_a_model_that_cannot_merge_is_one_error():
    with pytest.raises(UserError, match="cannot merge tokens in ResNet; expected Vim, VideoMamba"):
        rmeeto.apply(timm.create_model("resnet18"), MergeConfig(r=3))
    parallel = vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock)
    with pytest.raises(UserError, match="its blocks are ParallelThingsBlock"):
        rmeeto.apply(parallel, MergeConfig(r=3))
    with pytest.raises(UserError, match="got a compiled VisionTransformer; compile or wrap a model after this"):
        rmeeto.apply(torch.compile(vit()), MergeConfig(r=3))
    with pytest.raises(UserError, match="cannot merge tokens in dict; expected Vim"):
        rmeeto.apply({}, MergeConfig(r=3))
    with pytest.raises(UserError, match="ResNet does not merge"):
        rmeeto.remove(timm.create_model("resnet18"))


def test_attention_masks_do_not_go_with_merging(x):
    model = rmeeto.apply(vit().eval(), MergeConfig(r=3))
    with pytest.raises(ValueError, match="VisionTransformer: attention masks do not go with merging"):
        model(x, attn_mask=torch.zeros(17, 17))


def test_layers_that_a_forward_would_index_are_refused(x):
    class Indexing(UpstreamMamba):
        def forward(self, x):
            hidden, residual = self.patch_embed.proj(x).flatten(2).transpose(1, 2), None
            hidden = torch.cat([self.cls_token.expand(len(x), -1, -1), hidden], dim=1)
            for i in range(len(self.layers)):
                hidden, residual = self.layers[i](hidden, residual)
            return self.head(self.norm_f(residual + hidden)[:, 0])

    model = rmeeto.apply(fill(Indexing(32, 8, 16, 2, 5)), MergeConfig(r=3))
    with pytest.raises(UserError, match="must iterate|iterates over them"):
        model(x)


def test_merging_alone_needs_torch_alone():
    code = "import rmeeto.merge, rmeeto.ops, sys; assert 'timm' not in sys.modules; from rmeeto import apply, remove"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    with pytest.raises(AttributeError, match="module 'rmeeto' has no attribute 'patched'"):
        rmeeto.patched  # noqa: B018
