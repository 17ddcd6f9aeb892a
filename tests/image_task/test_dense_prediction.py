"""The dense-prediction example: a linear probe on unmerged feature maps."""

import pytest
import timm
import torch

from image_task.example.dense_prediction import main, patch_labels, probe
from rmeeto import MergeConfig


def test_the_example_beats_naming_every_patch_background(tmp_path, capsys):
    accuracy = main(["--r", "0", "12", "--weights", str(tmp_path / "none"), "--batches", "2"])
    printed = capsys.readouterr().out
    assert "random weights" in printed and "r 12:  41 of 65 tokens left" in printed
    assert all(0.55 < value < 1 for value in accuracy.values()) and accuracy[0] != accuracy[12]


def test_a_patch_is_labelled_where_it_has_ink():
    images = torch.full((2, 3, 4, 4), -1.0)
    images[1, :, 0, 3] = 0.5
    assert patch_labels(images, torch.tensor([7, 3]), 2).tolist() == [[10] * 4, [10, 3, 10, 10]]


def test_the_probe_finds_what_is_in_the_features():
    class Looks(torch.nn.Module):
        """Features that hold the answer."""

        patch_embed = timm.layers.PatchEmbed(4, 2, 3, 11)

        def forward_intermediates(self, x, **kwargs):
            return [torch.nn.functional.one_hot(patch_labels(x, digits, 2), 11).float()]

    digits = torch.arange(10)
    images = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert probe(Looks(), [(images, digits)], [(images, digits)]) == 1.0


@pytest.mark.parametrize("r", [0, 8])
def test_the_default_model_keeps_its_grid(r):
    model = timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=r)).eval()
    (features,) = model.forward_intermediates(torch.zeros(1, 3, 16, 16), indices=1, intermediates_only=True)
    assert features.shape == (1, 32, 8, 8)
