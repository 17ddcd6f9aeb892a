"""Vim: settings, sizes, names, outputs."""

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from image_task.models import ALIASES, MODELS, Vim
from rmeeto import MergeConfig


def small(**kwargs) -> Vim:
    torch.manual_seed(0)
    return Vim(
        **{
            "img_size": 32,
            "patch_size": 4,
            "stride": 4,
            "embed_dim": 24,
            "depth": 6,
            "num_classes": 5,
            **kwargs,
        }
    )


def images(size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("merge", [MergeConfig(r=0), MergeConfig(r=0, metric="B", keep_order=False)])
def test_r_zero_is_bit_identical_to_dense(merge):
    dense, merged, x = small().eval(), small(merge=merge).eval(), images()
    assert torch.equal(dense(x), merged(x))
    assert dense.num_tokens == merged.num_tokens == [65] * 6


def test_merge_config_none_gives_the_dense_model_back():
    model, x = small().eval(), images()
    dense = model(x)
    model.merge_config = MergeConfig(r=8)
    assert model.num_tokens == [65, 65, 57, 57, 49, 49]
    assert not torch.equal(model(x), dense)
    model.merge_config = None
    assert torch.equal(model(x), dense)


@pytest.mark.parametrize(
    "merge",
    [
        MergeConfig(r=8),
        MergeConfig(r=8, class_position="exact"),
        MergeConfig(r=8, keep_order=False, class_position="exact"),
        MergeConfig(r=8, metric="delta", distance="l1"),
        MergeConfig(r=8, mode="amax"),
        MergeConfig(r=8, prune=True),
        MergeConfig(r=8, neighbour=3, odd=True),
        MergeConfig(r=(4, 12)),
        MergeConfig(r=(8, -1.0)),
        MergeConfig(r=0, final_tokens=40),
        MergeConfig(r=8, shuffle="odd-even"),
        MergeConfig(r=8, shuffle="random", shuffle_rate=0.5, class_position="exact"),
    ],
    ids=str,
)
def test_every_setting_runs_forward_and_backward(merge):
    model = small(merge=merge, drop_path_rate=0.2).train()
    logits = model(images())
    assert logits.shape == (2, 5)
    logits.sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert used == {name for name, _ in model.named_parameters()}


def test_token_counts_are_those_that_the_mixers_see():
    model, seen = small(merge=MergeConfig(r=(3, 40), odd=True, interval=3)), []
    for block in model.layers:
        block.mixer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    model(images())
    assert seen == model.num_tokens == [65, 65, 62, 62, 62, 32]


def test_tokens_are_shuffled_in_every_merging_block_also_where_none_merges():
    """With r = 0 the two shuffles of this model leave its tokens traced to where odd-even twice sends them."""
    model, x = small(merge=MergeConfig(shuffle="odd-even")).eval(), images()
    state = model.encode(x, trace=True)
    patches = torch.arange(64)
    for _ in range(2):
        patches = torch.cat([patches[0::2], patches[1::2]])
    tokens = patches + (patches >= 32)  # the class token stays in the middle
    expected = torch.cat([tokens[:32], torch.tensor([32]), tokens[32:]])
    assert torch.equal(state.source.argmax(2), expected.expand(2, -1))
    shuffled = model(x)
    model.merge_config = None
    assert not torch.allclose(shuffled, model(x), atol=1e-4)


@pytest.mark.parametrize("position", ["proportional", "exact"])
def test_class_token_reaches_the_head_and_is_never_merged(position):
    """The traced column of the class token is alone in its row, and that row feeds the head."""
    model = small(merge=MergeConfig(r=10, class_position=position)).eval()
    state = model.encode(images(), trace=True)
    at = state.class_index if isinstance(state.class_index, torch.Tensor) else torch.tensor([state.class_index] * 2)
    for sample, index in enumerate(at.tolist()):
        assert state.source[sample, index].nonzero().flatten().tolist() == [model.class_index]


def test_forward_features_puts_the_class_token_first_and_keeps_the_order_of_the_rest():
    model = small(merge=MergeConfig(r=10)).eval()
    x = images()
    features, state = model.forward_features(x), model.encode(x)
    index = state.class_index
    rest = torch.cat([state.hidden[:, :index], state.hidden[:, index + 1 :]], 1)
    assert torch.equal(features, torch.cat([state.hidden[:, index : index + 1], rest], 1))
    assert torch.equal(model.forward_head(features), model(x))


def test_a_frozen_position_embedding_stays_frozen_at_another_size():
    model = small().requires_grad_(False)
    model.set_input_size(24)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_drop_path_acts_from_the_third_block_on_and_before_the_final_norm():
    model = small(drop_path_rate=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    assert model.drop_path.drop_prob == 0.5


def test_bf16_autocast_keeps_the_residual_stream_in_fp32():
    model = small(merge=MergeConfig(r=8))
    types = []
    for block in model.layers:
        block.register_forward_hook(lambda _, __, state: types.append((state.residual.dtype, state.hidden.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        model(images()).float().sum().backward()
    assert set(types) == {(torch.float32, torch.bfloat16)}


def test_reset_classifier_changes_the_head_only():
    model = small()
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images()).shape == (2, 24)


@pytest.mark.parametrize("name", [*MODELS, *ALIASES])
def test_every_registered_name_makes_a_model(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, img_size=32)
    assert model.head.out_features == 7
    assert model.num_tokens == [model.num_patches + 1] * model.depth


def test_fine_stride_form_overlaps_its_patches():
    with torch.device("meta"):
        model = timm.create_model("vim_tiny_patch16_stride8_224")
    assert model.patch_embed.grid_size == (27, 27)
    assert model.num_tokens[0] == 730


def test_non_square_images():
    model = small(img_size=(32, 16)).eval()
    assert model(torch.randn(1, 3, 32, 16)).shape == (1, 5)


def test_released_dict_and_names():
    para = {"num_prune": 5, "if_order": True, "metric": "X", "choose": "3c", "merge_interval": 2}
    with torch.device("meta"):
        model = timm.create_model("RMeeTo_tiny", merge_para=para)
        shuffled = timm.create_model("RMeeTo_tiny_shuffle", merge_para={**para, "shuffle_rate": 0.3})
    assert model.merge_config == MergeConfig(r=5, neighbour=3)
    assert model.num_tokens[-1] == 142
    assert (shuffled.merge_config.shuffle, shuffled.merge_config.shuffle_rate) == ("random", 0.3)
    with pytest.raises(ValueError, match="dense teacher"):
        timm.create_model("RMeeTo_tiny_teacher", merge_para=para)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(merge=MergeConfig(r=4, metric="Q")), "Vim: metric='Q'"),
        (lambda: small(merge=MergeConfig(r=8, neighbour=30)), "only 28 destinations"),
        (lambda: small(merge=MergeConfig(r=[1, 2, 3])), "2 blocks merge"),
        (lambda: small(merge={"r": 8}), "expected a MergeConfig"),
        (lambda: small(img_size=2), "at least one patch"),
        (lambda: small(patch_size=0), "patch_size=0, stride=4: .* a patch and a stride of 1 or more"),
        (lambda: small(depth=0), "Vim: depth=0; expected 1 or more"),
        (lambda: small(d_state=0), "Vim: d_state=0; expected 1 or more"),
        (lambda: small()(images(16)), r"expected \(B, 3, 32, 32\)"),
        (lambda: timm.create_model("vim_nano_patch2_16", pretrained=True), "load_weights"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
