"""timm's Eva (EVA-02, DINOv3, and others with rotary positions), merged."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.models.eva import Eva

import rmeeto
from rmeeto import MergeConfig
from rmeeto.measure import count_flops

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
ROPE = {"use_rot_pos_emb": True, "rope_grid_indexing": "ij"}
KINDS = {
    "absolute": {},
    "eva02": {**ROPE, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "init_values": 0.1},
    "after": {**ROPE, "use_post_norm": True},
    "mixed": {**ROPE, "rope_type": "mixed", "global_pool": "token"},
    "dinov3": {**ROPE, "rope_type": "dinov3", "num_reg_tokens": 4, "no_embed_class": True, "use_abs_pos_emb": False,
               "rope_rotate_half": True},
    "grouped": {**ROPE, "attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False},
    "no class": {**ROPE, "class_token": False, "global_pool": "avg"},
}  # fmt: skip


@pytest.fixture(params=KINDS)
def model(request) -> Eva:
    torch.manual_seed(0)
    made = Eva(**SMALL, **KINDS[request.param]).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_merging_nothing_is_the_dense_model_and_so_is_what_remove_leaves(model, x):
    dense, kinds = model(x), [type(block) for block in model.blocks]
    rmeeto.apply(model, MergeConfig(r=0))
    assert torch.equal(model(x), dense)
    model.merge_config = MergeConfig(r=3)
    assert not torch.equal(model(x), dense)
    rmeeto.remove(model)
    assert type(model) is Eva and [type(block) for block in model.blocks] == kinds
    assert torch.equal(model(x), dense)


@torch.no_grad()
@pytest.mark.parametrize("metric", ["X", "Q", "K", "V"])
def test_tokens_are_merged_and_positions_follow_them(model, x, metric):
    prefix = model.num_prefix_tokens
    rmeeto.apply(model, MergeConfig(r=4, metric=metric))
    assert model.num_tokens == [16 + prefix, 12 + prefix, 8 + prefix]
    *_, last = model.states(x)
    assert last.hidden.shape[1] == 4 + prefix and last.size.sum(1).eq(16 + prefix).all()
    assert (last.target[:, :prefix] == torch.arange(prefix)).all()
    assert torch.allclose(model.forward_head(model.forward_features(x)), model(x), atol=1e-6)
    model.merge_config = MergeConfig(r=(4, 0, 0), metric=metric)
    ordered = model(x)
    model.merge_config = MergeConfig(r=(4, 0, 0), metric=metric, keep_order=False)  # which attention does not see
    assert torch.allclose(model(x), ordered, atol=1e-5)


@torch.no_grad()
def test_shuffled_tokens_are_what_they_were_but_merge_with_others(model, x):
    """Positions, traces, pools and maps follow the tokens: without a merge only the order of the sums differs."""
    dense, map_of_dense = model(x), model.forward_intermediates(x, 1, intermediates_only=True)[0]
    rmeeto.apply(model, MergeConfig(r=0, shuffle="odd-even"))
    last = [*model.states(x)][-1]
    patches = torch.arange(16)
    for _ in range(3):
        patches = torch.cat([patches[0::2], patches[1::2]])
    order = torch.cat([torch.arange(model.num_prefix_tokens), patches + model.num_prefix_tokens])
    assert torch.equal(last.source.argmax(2), order.expand(2, -1))
    torch.testing.assert_close(model(x), dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.forward_intermediates(x, 1, intermediates_only=True)[0], map_of_dense, rtol=1e-4,
                               atol=1e-4)  # fmt: skip
    model.merge_config = MergeConfig(r=3)
    ordered = model(x)
    model.merge_config = MergeConfig(r=3, shuffle="random", shuffle_rate=1.0)
    assert not torch.allclose(model(x), ordered, atol=1e-3)


@torch.no_grad()
def test_a_block_behind_a_pruning_one_is_the_dense_block_of_the_tokens_left(model, x):
    tokens = model._pos_embed(model.patch_embed(x))
    tokens, rope = model.norm_pre(tokens[0]), tokens[1]
    dense = copy.deepcopy(model)
    rmeeto.apply(model, MergeConfig(r=(5, 0, 0), prune=True))
    first, second, _ = model.states(x)
    prefix = model.num_prefix_tokens
    for sample in range(2):
        kept = (first.target[sample] >= 0).nonzero().flatten()
        own = rope
        if rope is not None:
            own = rope[1] if dense.rope_mixed else rope
            own = own[..., kept[prefix:] - prefix, :]
        expected = dense.blocks[1](first.hidden[sample : sample + 1], rope=own)
        assert torch.allclose(second.hidden[sample], expected[0], atol=1e-5)


def test_hooks_see_a_merging_block_as_any_other(model, x):
    rmeeto.apply(model, MergeConfig(r=4))
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, out: seen.append((given[0].shape[1], out.shape[1])))
    model(x)
    prefix = model.num_prefix_tokens
    assert seen == [(n + prefix, n - 4 + prefix) for n in (16, 12, 8)]


@torch.no_grad()
def test_copies_pickles_gradients_and_recomputation(model, x):
    rmeeto.apply(model, MergeConfig(r=4))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    assert count_flops(model, (3, 32, 32)).total > 0
    with torch.enable_grad():
        gradients = []
        for enable in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            model(x).square().sum().backward()
            gradients.append(model.blocks[1].attn.proj.weight.grad.clone())
    assert torch.equal(*gradients)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("eva02_tiny_patch14_224", 56),
        ("vit_small_patch16_dinov3", 64),
        ("vit_small_patch14_dinov2", 56),
        ("vit_small_patch14_reg4_dinov2", 56),
        ("vit_small_patch16_rope_224", 64),
    ],
)
def test_models_of_timm_by_name(name, size):
    model = timm.create_model(name, img_size=size, num_classes=3, depth=2).eval()
    image = torch.randn(1, 3, size, size)
    dense = model(image)
    assert torch.equal(rmeeto.apply(model, MergeConfig(r=0))(image), dense)
    model.merge_config = MergeConfig(r=2)
    assert model(image).isfinite().all() and not torch.equal(model(image), dense)
