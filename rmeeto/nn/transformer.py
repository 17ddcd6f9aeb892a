"""Token merging in timm's Vision Transformers: VisionTransformer, and Eva (EVA, DINOv3: with rotary positions)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from rmeeto.merge import MergeConfig, TokenState, check_neighbour, removals, token_counts
from rmeeto.merge.state import own_places
from rmeeto.nn.attention import MergingBlock, Step
from rmeeto.nn.features import as_outputs, take_indices, to_map
from rmeeto.nn.features import unmerge as unmerge_tokens
from rmeeto.nn.shuffle import shuffle_state
from rmeeto.nn.swap import Swapped, swap, unswap

# What can merge: a model's class, with the classes of its blocks and of their attention.
FAMILIES: dict[type, tuple[tuple[type, ...], tuple[type, ...]]] = {
    VisionTransformer: ((Block,), (Attention,)),
    Eva: ((EvaBlock, EvaBlockPostNorm), (EvaAttention, AttentionRope)),
}


class MergingTransformer:
    """Mixin before `VisionTransformer` or `Eva` in a class's bases: the same model, merging as ``merge_config`` says.

    Every block merges r tokens between the attention's residual add and the MLP, and attention is proportional: the
    logarithm of a token's size is added to its logits. The prefix (class and distillation token, registers) never
    merges and stays first. Similarity is measured on X (the tokens after the attention) or on Q, K or V (the block's
    projections, mean over the heads). Pools other than the class token's see every original token: an average over
    merged tokens is weighted by their sizes. A rotary position embedding follows the tokens that survive: a merged
    token is rotated as the one that the others went into. ``shuffle`` reorders the tokens before each block: an
    attention does not see their order, so that only what may merge with what changes.

    What a `MergeConfig` can say for a scan only is refused: interval (its default 2 stands for none), odd,
    class_position, released_flip, window, and the metrics B, C and delta.

    With ``merge_config`` None or r = 0 every method is the model's own.

    Source: ToMe, arXiv 2210.09461.
    """

    metrics = ("X", "Q", "K", "V")
    _merge_config: MergeConfig | None = None
    _merge_depth: int = 0  # blocks when configured; some may be pruned away later

    @property
    def merge_config(self) -> MergeConfig | None:
        """How the model merges; assign a `MergeConfig` or None to re-configure it in place."""
        return self._merge_config

    @merge_config.setter
    def merge_config(self, config: MergeConfig | None) -> None:
        if config is not None:
            self._check(config)
        self._merge_config, self._merge_depth = config, self._depth
        for block in self.blocks:
            if config is None and isinstance(block, Swapped):
                unswap(block)
            elif config is not None and not isinstance(block, Swapped):
                swap(block, MergingBlock)

    def _check(self, config: MergeConfig) -> None:
        name = type(self).__name__
        if not isinstance(config, MergeConfig):
            raise ValueError(f"merge={config!r}; expected a MergeConfig or None")
        defaults = MergeConfig()
        for option in ("interval", "odd", "class_position", "released_flip", "window"):
            value = getattr(config, option)
            if value != getattr(defaults, option) and (option, value) != ("interval", 1):
                raise ValueError(
                    f"{name}: {option}={value!r} has no effect: a Transformer merges in every block and its class "
                    "token stays first; leave it out"
                )
        config.check_metrics(name, "a Transformer", self.metrics)
        depth, tokens = self._depth, self._num_input_tokens()
        if isinstance(config.r, tuple) and config.inflection is None and len(config.r) != depth:
            raise ValueError(f"{name}: r lists {len(config.r)} values, but {depth} blocks merge; give one for each")
        check_neighbour(name, config, depth, tokens, prefix=self.num_prefix_tokens)

    @property
    def _depth(self) -> int:
        """Blocks that r is spread over."""
        return self._merge_depth or len(self.blocks)

    @property
    def num_tokens(self) -> list[int]:
        """Number of tokens that each block's attention sees, the prefix counted (its MLP sees those left)."""
        counts = token_counts(self.merge_config, self._depth, self._num_input_tokens(), prefix=self.num_prefix_tokens)
        return counts[: len(self.blocks)]

    def _num_input_tokens(self) -> int:
        return self.patch_embed.num_patches + self.num_prefix_tokens

    @property
    def _merges(self) -> bool:
        return self.merge_config is not None and self.merge_config.is_active

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Logits (B, num_classes)."""
        if not self._merges:
            return super().forward(x, *args, **kwargs)
        return self.forward_head(self.forward_features(x, *args, **kwargs))

    def forward_features(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Normalised tokens, the prefix first: those that are left, (B, L', C), where the head reads the class token.

        For another pool every original token, (B, L, C), has the value of the one that it is part of, so that
        ``forward_head`` gives the model's own logits and embeddings.
        """
        if not self._merges:
            return super().forward_features(x, *args, **kwargs)
        self._refuse_masks(args, kwargs)
        state = self.encode(x)
        tokens = self.norm(state.hidden)
        return tokens if self.global_pool == "token" else unmerge_tokens(tokens, state.target)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        unmerge: bool = True,
        output_dict: bool = False,
        **kwargs: object,
    ) -> list | tuple[Tensor, list] | dict[str, Any]:
        """timm's own, on the full grid: every patch has the value of the token that it is part of.

        Args:
            unmerge: without it, features have as many tokens as are left, in ``NLC``.
            output_dict: timm's dictionary of them.

        Raises:
            ValueError: a block that does not exist, an unknown format, or ``NCHW`` of merged tokens.
        """
        options = (indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only)
        if not self._merges:
            kwargs |= {"output_dict": True} if output_dict else {}
            return super().forward_intermediates(x, *options, **kwargs)
        self._refuse_masks((), kwargs)
        wanted, last = take_indices(len(self.blocks), indices)
        grid = self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
        features = []
        for i, state in enumerate(self.states(x)):
            if i in wanted:
                tokens = self.norm(state.hidden) if norm else state.hidden
                if unmerge:
                    tokens = unmerge_tokens(tokens, state.target)
                patches = to_map(tokens[:, self.num_prefix_tokens :], grid, output_fmt)
                prefix = tokens[:, : self.num_prefix_tokens]
                features.append((patches, prefix) if return_prefix_tokens and prefix.shape[1] else patches)
            if stop_early and i == last:
                break
        final = None if intermediates_only else self.norm(state.hidden)
        return as_outputs(features, final, return_prefix_tokens, output_dict)

    def _refuse_masks(self, args: tuple, kwargs: dict) -> None:
        if any(value is not None and value is not False for value in (*args, *kwargs.values())):
            given = [name for name, value in kwargs.items() if value is not None and value is not False]
            raise ValueError(
                f"{type(self).__name__}: attention masks do not go with merging, for its tokens become fewer; got "
                f"{', '.join(given) or 'one'}; leave it out"
            )

    def encode(self, x: Tensor) -> TokenState:
        """The state behind the last block, before the final norm; ``hidden`` holds the tokens (B, L', C)."""
        for state in self.states(x):
            last = state
        return last

    def states(self, x: Tensor, trace: bool = True) -> Iterator[TokenState]:
        """The state after each block; where each original token went is always recorded."""
        tokens, rope = self._embedded(x)
        prefix, places = self.num_prefix_tokens, own_places(tokens)
        class_index = None if getattr(self, "cls_token", None) is None else 0
        state = TokenState(tokens, class_index=class_index, target=places, cell=None if rope is None else places)
        counts = removals(self.merge_config, self._depth, tokens.shape[1], prefix=prefix)
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for number, (block, r) in enumerate(zip(self.blocks, counts, strict=False)):
            own = rope[number] if rope is not None and getattr(self, "rope_mixed", False) else rope
            if self.merge_config.shuffle is not None:
                state = shuffle_state(state, self.merge_config, prefix)
            step = Step(state, r, self.merge_config, prefix, own)
            if recompute:
                hidden = torch.utils.checkpoint.checkpoint(block, state.hidden, step=step, use_reentrant=False)
            else:
                hidden = block(state.hidden, step=step)
            state = step.after._replace(hidden=hidden)  # which a hook may have changed
            yield state

    def _embedded(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens before the first block, and the rotary position embedding of its patches where there is one."""
        found = self._pos_embed(self.patch_embed(x))
        if isinstance(found, tuple):
            return self.norm_pre(found[0]), found[1]
        return self.norm_pre(self.patch_drop(found)), None


def why_not(model: nn.Module) -> str | None:
    """What keeps a Vision Transformer of timm's from merging, or None."""
    family = next(family for family in FAMILIES if isinstance(model, family))
    blocks, attentions = FAMILIES[family]
    for method in ("forward", "forward_features", "forward_intermediates"):
        if getattr(type(model), method) is not getattr(family, method):
            return f"its class has a {method} of its own"
    for block in model.blocks:
        if not any(type(block).forward is known.forward for known in blocks):
            return f"its blocks are {type(block).__name__}, not timm's {blocks[0].__name__}"
        if not any(type(block.attn).forward is known.forward for known in attentions):
            return f"its attention is {type(block.attn).__name__}, not timm's {attentions[0].__name__}"
    return None
