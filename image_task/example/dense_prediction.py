"""Dense prediction on a merged model: a linear probe names the digit, or the background, at every patch.

    python -m image_task.example.dense_prediction --r 0 4 8 12

Tokens that were merged are given back to every patch of the grid (``forward_intermediates(..., unmerge=True)``), so a
dense head needs to know nothing of merging. The frozen features of the embedded digits model are probed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import image_task.models  # noqa: F401  (registers the models)
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.models import load_weights
from rmeeto import MergeConfig
from rmeeto.cli.parser import read_path
from rmeeto.errors import shown

WEIGHTS = Path(__file__).parents[1] / "exp_sh" / "digits" / "dense.safetensors"
RIDGE = 1.0


def patch_labels(images: Tensor, digits: Tensor, patch_size: int) -> Tensor:
    """The digit where a patch has ink, else 10: images (B, 3, H, W), digits (B,) -> (B, H / p * W / p)."""
    ink = F.max_pool2d(images[:, :1], patch_size).flatten(1) > 0
    return torch.where(ink, digits.unsqueeze(1), 10)


@torch.no_grad()
def probe(model: nn.Module, train: list, test: list) -> float:
    """Share of test patches that a linear probe on the model's last feature maps names rightly.

    Args:
        model: frozen.
        train, test: batches of (images, digits); the probe is fitted on train, by ridge regression.
    """

    def features(images: Tensor) -> Tensor:  # (B * P, C + 1), whatever was merged
        maps = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
        return F.pad(maps[0].flatten(0, 1), (0, 1), value=1.0)

    patch = model.patch_embed.proj.kernel_size[0]
    x = torch.cat([features(images) for images, _ in train])
    y = torch.cat([F.one_hot(patch_labels(*batch, patch), 11).flatten(0, 1) for batch in train]).float()
    weight = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    right = [
        (features(images) @ weight).argmax(1) == patch_labels(images, digits, patch).flatten()
        for images, digits in test
    ]
    return torch.cat(right).float().mean().item()


def main(argv: list[str] | None = None) -> dict[int, float]:
    """Print the probe's accuracy for each r."""
    parser = argparse.ArgumentParser(description="A linear probe on the unmerged feature maps of the digits model.")
    parser.add_argument("--r", type=int, nargs="+", default=[0, 4, 8, 12], help="tokens removed by each merge")
    parser.add_argument("--weights", type=read_path, default=WEIGHTS, help="of vim_nano_patch2_16")
    parser.add_argument("--batches", type=int, default=0, help="at most so many of each split; 0: all")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = timm.create_model("vim_nano_patch2_16").eval()
    if args.weights.is_file():
        load_weights(model, args.weights)
    else:
        print(f"{shown(args.weights)} is not there: the features are those of random weights")
    config = DataConfig(augment=False, num_workers=0, batch_size=256, max_train_batches=args.batches,
                        max_eval_batches=args.batches, repeated_aug=False)  # fmt: skip
    data = build_data(config, img_size=16, rank=0, world_size=1, seed=0)
    train, test = list(data.train_batches(0)), list(data.eval_batches())
    accuracy = {}
    for r in args.r:
        model.merge_config = MergeConfig(r=r)
        accuracy[r] = probe(model, train, test)
        print(f"r {r:2d}: {model.num_tokens[-1]:3d} of 65 tokens left, {100 * accuracy[r]:.2f} % of the patches right")
    return accuracy


if __name__ == "__main__":
    main()
