"""Pictures show what was merged, with the class token where it is."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from image_task.models import Deit, VideoMamba, Vim
from rmeeto.measure import draw_merged, trace
from rmeeto.merge import MergeConfig

MODELS = {
    "middle": lambda merge: Vim(16, 4, 4, embed_dim=16, depth=4, num_classes=3, merge=merge),
    "first": lambda merge: VideoMamba(16, 4, embed_dim=16, depth=4, num_classes=3, merge=merge),
    "transformer": lambda merge: Deit(16, 4, embed_dim=24, depth=3, num_classes=3, merge=merge),
}


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", MODELS)
def test_trace_gives_every_original_token_one_place(kind, images):
    model = MODELS[kind](MergeConfig(r=3)).eval()
    source = trace(model, images)
    removed = 3 * (3 if kind == "transformer" else 1)
    assert source.shape == (2, 17 - removed, 17)
    assert (source.sum(1) == 1).all()
    # Nothing is merged into the class token, and nothing takes it in.
    row = source[:, :, model.class_index].argmax(1)
    assert (source[torch.arange(2), row].sum(1) == 1).all()


def test_trace_is_the_models_own_merge(images):
    model = MODELS["middle"](MergeConfig(r=4)).eval()
    assert torch.equal(trace(model, images), model.encode(images, trace=True).source)


@pytest.mark.parametrize(("kind", "left"), [("middle", 13), ("first", 13), ("transformer", 5)])
def test_pruned_tokens_are_in_no_row(kind, left, images):
    source = trace(MODELS[kind](MergeConfig(r=4, prune=True)).eval(), images)
    assert source.shape == (2, left, 17) and source.sum() == 2 * left


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: MODELS["middle"](None), "training mode"),
        (lambda: timm.create_model("test_vit").eval(), "VisionTransformer; expected"),
    ],
)
def test_trace_refuses_what_it_cannot_follow(model, message, images):
    with pytest.raises(ValueError, match=message) as error:
        trace(model(), images)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("class_index", [0, 2, 4])
def test_the_class_token_is_no_patch(class_index):
    """Patches 0 and 3 of a 2 x 2 grid merge; the class token stands before, among or behind the patches."""
    tokens = [i for i in range(5) if i != class_index]  # tokens of the patches
    rows = [[tokens[0], tokens[3]], [tokens[1]], [tokens[2]], [class_index]]
    source = torch.zeros(4, 5)
    for row, members in zip(source, rows):
        row[members] = 1
    image = torch.zeros(3, 32, 32)
    image[:, :16, :16] = 1.0
    figure = draw_merged(image, source, class_index)
    drawn = figure.axes[1].images[0].get_array()
    for y, x, grey in ((8, 8, 0.5), (24, 24, 0.5), (8, 24, 0.0), (24, 8, 0.0)):
        np.testing.assert_allclose(drawn[y, x], grey)


def test_figures_show_each_image_above_its_merged_tokens(tmp_path, images):
    model = MODELS["middle"](MergeConfig(r=5)).eval()
    figure = draw_merged(images, trace(model, images), model.class_index, mean=[0.5] * 3, std=0.25)
    assert len(figure.axes) == 4 and "17 tokens, 12 left" in figure.get_suptitle()
    shown = np.asarray(figure.axes[1].images[0].get_array())  # the second image itself
    np.testing.assert_allclose(shown, (images[1].movedim(0, -1) * 0.25 + 0.5).numpy(), atol=1e-6)
    figure.savefig(tmp_path / "merged.png")
    assert (tmp_path / "merged.png").stat().st_size > 1000


def test_clips_are_drawn_frame_by_frame():
    clips = torch.rand(2, 3, 4, 16, 16)
    source = torch.eye(4 * 4 + 1).expand(2, -1, -1)  # one patch of 8 x 8 pixels and one frame each, not merged
    figure = draw_merged(clips, source, 0)
    assert len(figure.axes) == 2 * 2 * 4
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), clips[0, :, 1].movedim(0, -1).numpy())
    painted = figure.axes[4].images[0].get_array()  # a patch of the first frame in its mean colour
    np.testing.assert_allclose(painted[8, 8], clips[0, :, 0, :8, :8].mean((1, 2)).numpy(), atol=1e-6)


def test_wide_images_and_given_grids():
    image = torch.rand(3, 8, 16)
    assert draw_merged(image, torch.eye(8), None).axes
    assert draw_merged(image, torch.eye(6), None, grid=(2, 3)).axes


@pytest.mark.parametrize(
    ("images", "source", "class_index", "message"),
    [
        (torch.rand(3, 16, 16), torch.eye(17), None, r"17 patches do not fill a grid .*class_index"),
        (torch.rand(2, 3, 16, 16), torch.eye(17), 8, r"source has shape \(17, 17\)"),
        (torch.rand(2, 3, 16, 16), torch.eye(17).expand(3, -1, -1), 8, r"expected \(2, tokens left"),
        (torch.rand(2, 1, 1, 1, 16, 16), torch.eye(17).expand(2, -1, -1), 8, r"shape \(2, 1, 1, 1, 16, 16\)"),
        (torch.rand(3, 16, 16), torch.eye(18), [0, 18], "class_index=18; expected 0 to 17"),
        (torch.rand(3, 16, 16), torch.eye(17), 17, "class_index=17; expected 0 to 16"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(images, source, class_index, message):
    with pytest.raises(ValueError, match=message):
        draw_merged(images, source, class_index)
