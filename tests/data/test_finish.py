"""What is left to do to a batch on the device: the same numbers as timm's and torchvision's own, sample by sample."""

import pytest
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.functional import normalize

from rmeeto.data.finish import Finish, batch_of, draw_erased
from rmeeto.data.sampler import preserved_globals, seed_globals

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _pixels(number, shape=(3, 20, 24)):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_batches_are_normalised_and_erased_as_single_images_bit_for_bit(mode):
    erase = RandomErasing(0.7, mode=mode, max_count=3, device="cpu")
    samples, expected = [], []
    with preserved_globals():
        for number in range(12):
            pixels = _pixels(number)
            seed_globals([number] * 3)
            samples.append((pixels, draw_erased(erase, pixels.shape), number))
            seed_globals([number] * 3)
            expected.append(erase(normalize(pixels.float().div(255), MEAN, STD)))
    batch = batch_of(samples)
    images, targets = Finish(MEAN, STD)(batch)
    assert batch.pixels.dtype == torch.uint8 and len(batch.places) > 3
    assert torch.equal(images, torch.stack(expected)) and targets.tolist() == list(range(12))


def test_nothing_is_erased_of_samples_that_have_nothing_to_be_erased():
    batch = batch_of([(_pixels(number), [], 0) for number in range(2)])
    assert batch.places.shape == (0, 5) and batch.erased.shape == (0,)
    images, _ = Finish(MEAN, STD)(batch)
    assert torch.equal(images[1], normalize(_pixels(1).float().div(255), MEAN, STD))


def test_all_frames_of_a_clip_are_erased_alike():
    clip = _pixels(0, (3, 4, 20, 24))
    with preserved_globals():
        seed_globals([1, 1, 1])
        erased = draw_erased(RandomErasing(1.0, mode="pixel", device="cpu"), (3, 20, 24))
    whole, _ = Finish(MEAN, STD)(batch_of([(clip, [], 0)]))
    clips, _ = Finish(MEAN, STD)(batch_of([(clip, [], 0), (clip, erased, 0)]))
    ((top, left, height, width), fill) = erased[0]
    part = clips[1][..., top : top + height, left : left + width]
    assert torch.equal(part, fill[:, None].expand_as(part)) and torch.equal(clips[0], whole[0])
    assert (clips[1] != whole[0]).sum() == part.numel()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_draws_from_the_batchs_own_seed_and_leaves_the_global_ones(mode):
    mix = Mixup(0.8, 1.0, mode=mode, num_classes=5)
    samples = [(_pixels(number), [], number) for number in range(4)]
    plain, classes = Finish(MEAN, STD)(batch_of(samples))
    with preserved_globals():
        seed_globals([7, 8, 9])
        expected = mix(plain.clone(), classes)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for _ in range(2):
        found = Finish(MEAN, STD, mix=mix)(batch_of(samples, [7, 8, 9]))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert Finish(MEAN, STD, mix=mix)(batch_of(samples))[1].tolist() == [0, 1, 2, 3]
