"""The bounds see what Gaussians share, and no more; what is captured is what the blocks see."""

from __future__ import annotations

import pytest
import torch

from image_task.models import Deit, VideoMamba, Vim
from rmeeto import MergeConfig
from rmeeto.measure.capture import capture
from rmeeto.measure.mutual_information import Settings, fewest_samples, gaussians, mutual_information
from rmeeto.nn import BiMamba

SMALL = Settings(steps=150, batch_size=128, hidden=(64, 32), dropout=0.0, lr=1e-3)


def test_the_gaussians_share_what_they_say():
    x, y = gaussians(4.0, 20, 200_000)
    correlation = (x * y).mean(0)
    torch.testing.assert_close(-0.5 * torch.log1p(-(correlation**2)).sum(), torch.tensor(4.0), rtol=0.02, atol=0)
    torch.testing.assert_close(y.std(0), torch.ones(20), rtol=0.02, atol=0)


@pytest.mark.parametrize("estimator", ["donsker-varadhan", "infonce"])
def test_groups_are_told_apart_and_nothing_is_seen_where_there_is_nothing(estimator):
    shared = [gaussians(nats, 2, 4000, seed) for seed, nats in enumerate((0.0, 1.0))]
    x, y = (torch.stack([pair[i] for pair in shared], 1) for i in (0, 1))
    nothing, some = mutual_information(x, y, estimator, settings=SMALL).tolist()
    assert -0.15 < nothing < 0.1 < 0.5 < some < 1.1
    apart = mutual_information(x, y, estimator, amortised=False, settings=SMALL)
    assert apart.shape == (2,) and apart[1] > 0.5


def test_a_bound_depends_on_its_seed_alone_and_leaves_the_generator():
    x, y = gaussians(1.0, 2, 1000)
    short = Settings(steps=5, batch_size=64, hidden=(8,))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mutual_information(x.reshape(500, 2, 1, 2), y.reshape(500, 2, 1, 2), settings=short)
    assert first.shape == (2, 1) and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again = mutual_information(x.reshape(500, 2, 1, 2), y.reshape(500, 2, 1, 2), settings=short)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        ((100, 2), (99, 2), {}, r"x \(100, 2\) and y \(99, 2\)"),
        ((100,), (100,), {}, "expected"),
        ((100, 2), (100, 2), {}, "do not fill a batch of 256"),
        ((1000, 2), (1000, 2), {"estimator": "mine"}, "expected one of donsker-varadhan, infonce"),
    ],
)
def test_what_cannot_be_measured_is_refused(x, y, more, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(torch.rand(x), torch.rand(y), **more)
    with pytest.raises(ValueError, match="held_out"):
        Settings(held_out=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "nats", "lowest", "highest"),
    [
        ("infonce", 1.0, 0.9, 1.05),
        ("infonce", 4.0, 3.6, 4.1),
        ("donsker-varadhan", 1.0, 0.5, 0.75),
        ("donsker-varadhan", 4.0, 2.4, 3.2),
    ],
)
def test_at_the_papers_settings_the_bounds_reach_what_the_documents_say(estimator, nats, lowest, highest):
    found = float(mutual_information(*gaussians(nats, 20, 50_000), estimator))
    assert lowest <= found <= highest, found


@pytest.mark.parametrize("average", [True, False])
def test_the_two_scans_make_up_the_mixer(average):
    torch.manual_seed(0)
    mixer, x = BiMamba(12, average=average).eval(), torch.randn(2, 9, 12)
    with torch.inference_mode():
        u, forward, backward = mixer.scans(x)
        out = mixer.out_proj((forward + backward) / (2 if average else 1))
        assert u.shape == forward.shape == backward.shape == (2, 9, 24)
        torch.testing.assert_close(out, mixer(x), rtol=1e-4, atol=1e-5)


MODELS = {
    "vim": lambda merge: Vim(16, 4, 4, embed_dim=16, depth=4, num_classes=3, merge=merge),
    "videomamba": lambda merge: VideoMamba(16, 4, embed_dim=16, depth=4, num_classes=3, merge=merge),
    "deit": lambda merge: Deit(16, 4, embed_dim=24, depth=4, num_classes=3, merge=merge),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("merge", [None, MergeConfig(r=3)])
def test_what_is_captured_is_what_the_mixer_is_given_and_gives(kind, merge):
    model = MODELS[kind](merge).eval()
    images = torch.rand(6, 3, 16, 16)
    x, y, places = capture(model, images.split(4), [1, 3], num_tokens=5)
    channels = 24 if kind == "deit" else 16
    assert x.shape == y.shape == (6, 2, 5, channels)
    assert places[0][0] == 0 and places[1][-1] == model.num_tokens[3] - 1
    block = (model.blocks if kind == "deit" else model.layers)[3]
    mixer = block.attn if kind == "deit" else block.mixer
    seen = []
    with torch.inference_mode(), mixer.register_forward_hook(lambda m, a, out: seen.append((a[0], out))):
        model(images)
    given, gave = seen[0]
    torch.testing.assert_close(x[:, 1], given[:, places[1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 1], gave[:, places[1]], rtol=1e-4, atol=1e-5)
    assert not mixer._forward_hooks


@pytest.mark.parametrize("part", ["forward", "backward", "both"])
def test_each_scan_is_captured_by_itself(part):
    model = MODELS["vim"](None).eval()
    images = torch.rand(2, 3, 16, 16)
    x, y, places = capture(model, [images], [2], part, num_tokens=17)
    given, _, _ = capture(model, [images], [2], num_tokens=17)
    u, forward, backward = model.layers[2].mixer.scans(given[:, 0])
    expected = {"forward": forward, "backward": backward, "both": (forward + backward) / 2}[part]
    torch.testing.assert_close(x[:, 0], u, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "blocks", "part", "message"),
    [
        ("vim", [4], "mixer", "some of 0 to 3"),
        ("deit", [0], "forward", "this model has mixer"),
        ("vim", [0], "x", "both"),
        ("vim", [2, 2], "mixer", "give each once"),
    ],
)
def test_blocks_and_parts_that_are_not_there_are_refused(kind, blocks, part, message):
    with pytest.raises(ValueError, match=message):
        capture(MODELS[kind](None).eval(), [torch.rand(1, 3, 16, 16)], blocks, part)


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="num_tokens=0; expected 1 or more"):
        capture(MODELS["vim"](None).eval(), [torch.rand(1, 3, 16, 16)], [0], num_tokens=0)
    with pytest.raises(ValueError, match="has no groups"):
        mutual_information(torch.rand(400, 0, 3), torch.rand(400, 0, 3))


def test_the_fewest_samples_fill_a_batch():
    settings = Settings(steps=1, batch_size=8)
    least = fewest_samples(settings)
    assert least == 10  # two of them are held out
    steps = []
    mutual_information(torch.rand(least, 2), torch.rand(least, 2), settings=settings, on_step=lambda: steps.append(1))
    assert len(steps) == 1
    with pytest.raises(ValueError, match="do not fill a batch of 8"):
        mutual_information(torch.rand(least - 1, 2), torch.rand(least - 1, 2), settings=settings)
