"""Tools that look into a merged model: hooks, tracing, torch.func, meta tensors, quantisation, adapters, printing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

import image_task.models as models
import rmeeto
import video_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.measure import count_flops
from tests.test_patch import UpstreamMamba


def vit(merge: MergeConfig | None = MergeConfig(r=3), **arguments) -> nn.Module:  # noqa: B008
    torch.manual_seed(0)
    arguments = {"img_size": 64, "num_classes": 10, "depth": 3, **arguments}
    return rmeeto.apply(timm.create_model("vit_tiny_patch16_224", **arguments).eval(), merge)


def vim(merge: MergeConfig | None = MergeConfig(r=4), **arguments) -> nn.Module:  # noqa: B008
    torch.manual_seed(0)
    return timm.create_model("vim_nano_patch2_16", depth=3, merge=merge, **arguments).eval()


def upstream() -> nn.Module:
    torch.manual_seed(0)
    return rmeeto.apply(UpstreamMamba(32, 8, 16, 5, 5), MergeConfig(r=2)).eval()


MODELS = {"vit": (vit, 64), "vim": (lambda: vim(img_size=8), 8), "upstream": (upstream, 32)}


@pytest.fixture(params=MODELS)
def model_and_x(request):
    make, size = MODELS[request.param]
    return make(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_trace_gives_the_same(model_and_x):
    model, x = model_and_x
    traced = torch.jit.trace(model, x)
    assert torch.allclose(traced(x), model(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{"keep_order": False}, {"class_position": "exact"}, {"prune": True}, {"metric": "B"}]
)
def test_a_trace_of_other_settings(settings):
    model, x = vim(MergeConfig(r=4, **settings), img_size=8), torch.randn(2, 3, 8, 8)
    assert torch.allclose(torch.jit.trace(model, x)(x), model(x), atol=1e-5)


def test_functional_transforms(model_and_x):
    model, x = model_and_x
    parameters = dict(model.named_parameters())

    def loss(values, images):
        return torch.func.functional_call(model, values, (images,)).square().sum()

    found = torch.func.grad(loss)(parameters, x)
    model(x).square().sum().backward()
    for name, value in parameters.items():
        assert torch.allclose(found[name], value.grad, rtol=1e-3, atol=1e-4), name
    each = torch.func.vmap(lambda image: model(image[None])[0])(x)
    assert torch.allclose(each, model(x), atol=1e-5)


def test_meta_tensors(model_and_x):
    model, x = model_and_x
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == model(x).shape


def test_a_second_derivative_is_refused_where_the_kernels_have_none(monkeypatch):
    model, x = vim(), torch.randn(1, 3, 16, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative; .* RMEETO_BACKEND=torch"):
        torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    monkeypatch.setenv("RMEETO_BACKEND", "torch")
    (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    second = torch.autograd.grad(g.square().sum(), list(model.parameters()), allow_unused=True)
    double, y = copy.deepcopy(model).double(), x.detach().double().requires_grad_()
    (g,) = torch.autograd.grad(double(y).square().sum(), y, create_graph=True)
    expected = torch.autograd.grad(g.square().sum(), list(double.parameters()), allow_unused=True)
    for a, b in zip(second, expected):
        assert a is None or (a - b).norm() <= 1e-2 * b.norm() + 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    "make", [lambda: vit(MergeConfig(r=3, metric="K")), lambda: vit(), lambda: vim(), lambda: vim(None)]
)
def test_dynamic_quantisation(make):
    model = make()
    size = 64 if hasattr(model, "blocks") else 16
    x = torch.randn(2, 3, size, size)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert (quantised(x) - model(x)).abs().max() < 0.5


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, as adapters are."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        nn.init.normal_(self.down.weight)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        result = copy.deepcopy(self.base)
        result.weight.data += self.up.weight @ self.down.weight
        return result


@torch.no_grad()
@pytest.mark.parametrize("metric", ["X", "Q", "K", "V"])
def test_an_adapter_on_the_projections_counts_in_the_metric(metric):
    model, x = vit(MergeConfig(r=3, metric=metric)), torch.randn(2, 3, 64, 64)
    for block in model.blocks:
        block.attn.qkv = Adapted(block.attn.qkv)
    adapted = model(x)
    for block in model.blocks:
        block.attn.qkv = block.attn.qkv.merged()
    assert torch.allclose(adapted, model(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("metric", ["X", "delta"])
def test_an_adapter_on_a_mixers_step_size_counts_too(metric):
    model, x = vim(MergeConfig(r=4, metric=metric)), torch.randn(2, 3, 16, 16)
    plain = model(x)
    for block in model.layers:
        block.mixer.dt_proj = Adapted(block.mixer.dt_proj)
    adapted = model(x)
    assert not torch.allclose(adapted, plain, atol=1e-5)
    for block in model.layers:
        block.mixer.dt_proj = block.mixer.dt_proj.merged()
    if metric == "X":
        assert torch.allclose(adapted, model(x), atol=1e-6)


class AdaptedConvolution(nn.Module):
    """A convolution whose output is scaled, as adapters do; its weights can be seen through it."""

    def __init__(self, base: nn.Conv1d) -> None:
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.tensor(1.5))

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.scale * self.base(x)


@pytest.mark.parametrize("name", ["conv1d", "conv1d_b"])
def test_an_adapter_on_a_mixers_convolution_counts_too(name):
    model, x = vim(MergeConfig(r=4)), torch.randn(2, 3, 16, 16)
    adapters = [AdaptedConvolution(getattr(block.mixer, name)) for block in model.layers]
    for block, adapter in zip(model.layers, adapters):
        setattr(block.mixer, name, adapter)
    adapted = model(x)
    adapted.sum().backward()
    assert all(adapter.scale.grad.abs() > 0 for adapter in adapters)
    for block, adapter in zip(model.layers, adapters):
        adapter.base.weight.data *= 1.5
        adapter.base.bias.data *= 1.5
        setattr(block.mixer, name, adapter.base)
    torch.testing.assert_close(model(x), adapted, rtol=1e-4, atol=1e-5)


def test_hooks_see_every_part_of_a_mixer_and_change_nothing():
    model, x, seen = vim(MergeConfig(r=4)), torch.randn(2, 3, 16, 16), []
    plain = model(x)
    for name, part in model.layers[0].mixer.named_children():
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    assert sorted(seen) == sorted(name for name, _ in model.layers[0].mixer.named_children())


def test_hooks_see_every_block_once(model_and_x):
    model, x = model_and_x
    seen = []
    blocks = model.blocks if hasattr(model, "blocks") else list(model.layers)
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    given = []
    (blocks[-1].mixer if hasattr(blocks[-1], "mixer") else blocks[-1].attn).register_forward_hook(
        lambda _, x, y: given.append((x[0], y[0] if isinstance(y, tuple) else y))
    )
    model(x)
    assert seen == list(range(len(blocks)))
    assert all(isinstance(tensor, torch.Tensor) and tensor.ndim == 3 for tensor in given[0])


@torch.no_grad()
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_head_of_features_is_the_model(pool):
    model, x = vit(global_pool=pool, class_token=pool != "map"), torch.randn(2, 3, 64, 64)
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(embedding, model(x))


def clips(merge: MergeConfig | None = MergeConfig(r=4)) -> nn.Module:  # noqa: B008
    torch.manual_seed(0)
    return timm.create_model("videomamba_video_nano_patch4_32", depth=3, num_frames=2, merge=merge)


@pytest.mark.parametrize("merge", [None, MergeConfig(r=4), MergeConfig(r=4, metric="B")])
@pytest.mark.parametrize(("make", "shape"), [(vim, (2, 3, 16, 16)), (clips, (1, 3, 2, 32, 32))])
def test_what_flows_between_blocks_is_a_tuple_that_hooks_see_through(make, shape, merge):
    model, x, seen = make(merge), torch.randn(shape), []
    model(x).sum().backward()
    expected = [value.grad.clone() for value in model.parameters()]
    model.zero_grad()
    for block in model.layers:
        block.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
        block.register_full_backward_hook(lambda *_: None)
    model(x).sum().backward()
    for given, output in seen:
        assert isinstance(given, tuple) and isinstance(output, tuple) and output[0] is output.hidden
    assert [output[0].shape[1] for _, output in seen] == model.num_tokens
    assert all(torch.equal(value.grad, wanted) for value, wanted in zip(model.parameters(), expected))


@pytest.mark.parametrize(("make", "shape"), [(vim, (2, 3, 16, 16)), (clips, (1, 3, 2, 32, 32)), (vit, (1, 3, 64, 64))])
def test_torchinfo_goes_through_the_blocks(make, shape):
    torchinfo = pytest.importorskip("torchinfo")
    model = make()
    found = torchinfo.summary(model, shape, verbose=0, device="cpu")
    assert found.total_params == sum(value.numel() for value in model.parameters())
    blocks = [layer for layer in found.summary_list if layer.class_name.endswith("Block")]
    assert [layer.output_size[1] for layer in blocks][: len(model.num_tokens)] == model.num_tokens or make is vit


def test_layers_of_an_applied_mamba_are_a_list():
    model, x = upstream(), torch.randn(2, 3, 32, 32)
    before = model(x)
    assert "UpstreamBlock" in repr(model) and repr(nn.DataParallel(model))
    assert [sum(1 for _ in layer.parameters()) for layer in model.layers] == [17] * 5
    assert model.layers[1] in model.layers and len(list(reversed(model.layers))) == 5 == len(model.layers)
    assert len(model.layers[1:3]) == 2 and model.layers[-1] is list(model.layers)[4]
    assert torch.equal(model(x), before)


@torch.no_grad()
@pytest.mark.parametrize("make", [vit, vim])
def test_intermediates_come_as_a_dictionary_too(make):
    model = make()
    x = torch.randn(2, 3, *([64] * 2 if make is vit else [16] * 2))
    final, features = model.forward_intermediates(x, 2, return_prefix_tokens=True)
    named = model.forward_intermediates(x, 2, return_prefix_tokens=True, output_dict=True)
    assert torch.equal(named["image_features"], final)
    for (patches, prefix), a, b in zip(features, named["image_intermediates"], named["image_intermediates_prefix"]):
        assert torch.equal(patches, a) and torch.equal(prefix, b)
    assert set(model.forward_intermediates(x, output_dict=True, intermediates_only=True)) == {"image_intermediates"}


def test_a_mask_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"masks do not go with merging.*; got attn_mask; leave it out$"):
        vit()(torch.randn(1, 3, 64, 64), attn_mask=torch.zeros(17, 17))


@pytest.mark.parametrize("r", [np.int64(4), np.int32(4), torch.tensor(4)])
def test_numbers_of_numpy_and_torch(r):
    config = MergeConfig(r=r, interval=np.int64(2), keep_order=np.bool_(True), final_tokens=None)
    assert config == MergeConfig(r=4) and type(config.r) is int and type(config.keep_order) is bool
    assert MergeConfig(r=np.array([3, 4])).r == (3, 4) and MergeConfig(r=np.float32(0.25)).r == 0.25


def test_one_channel_of_a_foreign_model_and_a_class_as_argument(tmp_path):
    model = UpstreamMamba(32, 8, 16, 2, 5)
    model.patch_embed.proj = nn.Conv2d(1, 16, 8, 8)
    rmeeto.apply(model, MergeConfig(r=2))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    made = timm.create_model("vit_tiny_patch16_224", depth=1, norm_layer=nn.LayerNorm)
    with pytest.raises(UserError, match="was made with norm_layer="):
        models.export(made, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_remove_twice():
    for make in (vit, vim):
        model = make()
        assert rmeeto.remove(rmeeto.remove(model)) is model


def test_costs_of_a_dynamic_size_and_of_a_hybrid():
    dynamic = vit(dynamic_img_size=True)
    assert count_flops(dynamic, (3, 96, 96)).total > count_flops(dynamic, (3, 64, 64)).total
    hybrid = rmeeto.apply(timm.create_model("vit_tiny_r_s16_p8_224", depth=2), MergeConfig(r=2))
    assert count_flops(hybrid, (3, 224, 224)).total > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["vim_nano_patch2_16", "videomamba_tiny_patch16_224"])
def test_the_input_size_is_set_as_of_timms_models(name, tmp_path):
    make = {"depth": 2, "img_size": 16} if "nano" in name else {"depth": 2, "img_size": 64}
    model = timm.create_model(name, merge=MergeConfig(r=3), **make).eval()
    nn.init.normal_(model.pos_embed)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    larger = (24, 32) if "nano" in name else (96, 64)
    other = timm.create_model(name, merge=MergeConfig(r=3), **{**make, "img_size": larger}).eval()
    models.load_weights(other, tmp_path / "x.pth")
    model.set_input_size(larger)
    x = torch.randn(1, 3, *larger)
    assert torch.equal(model(x), other(x)) and model.num_tokens == other.num_tokens
    assert model.pretrained_cfg["input_size"] == (3, *larger) and model.head_hidden_size == model.num_features
    with pytest.raises(ValueError, match="patch_size=3; images alone change their size"):
        model.set_input_size(larger, patch_size=3)
