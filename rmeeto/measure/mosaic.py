"""Tokens as regions of a picture: mean colours, borders, and maps of what a number says of each patch.

H, W pixels; rows, columns of patches; a clip has T frames in front of both, a picture has one.
"""

from __future__ import annotations

import math

import numpy as np

CELL = 16  # pixels that the side of a patch is enlarged to, at least
LIGHT, DARK = 1.0, 0.0
# 24 colours, each as far as can be from the earlier ones in CIELAB; none is near grey, which says "one patch".
PALETTE = np.array(
    [(225, 165, 0), (0, 0, 255), (255, 45, 150), (0, 240, 210), (45, 150, 255), (0, 255, 0), (15, 90, 0), (255, 0, 0),
     (105, 30, 135), (135, 45, 15), (255, 0, 255), (150, 210, 90), (255, 165, 255), (255, 135, 120), (0, 90, 255),
     (150, 0, 75), (135, 105, 0), (30, 165, 105), (225, 225, 0), (195, 90, 225), (225, 105, 15), (240, 15, 75),
     (0, 240, 120), (0, 150, 0)]
) / 255  # fmt: skip


def spread(groups: np.ndarray, frames: int, height: int, width: int) -> np.ndarray:
    """What is known of each patch, (T', rows, columns), at every pixel: (T, H, W)."""
    wanted = (frames, height, width)
    return groups[np.ix_(*(np.arange(n) * m // n for n, m in zip(wanted, groups.shape)))]


def enlarged(clip: np.ndarray, rows: int, least: int = 0) -> np.ndarray:
    """A clip (T, H, W, 3) whose patches have an edge of `CELL` pixels at least, by a whole number of times.

    Args:
        least: height that is reached as well, as far as whole numbers allow.
    """
    scale = max(math.ceil(CELL * rows / clip.shape[1]), least // clip.shape[1])
    return clip.repeat(scale, 1).repeat(scale, 2)


def paint(clip: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Give every token the mean colour of its patches, with borders between tokens that no colour hides.

    Args:
        clip: (T, H, W, 3) in [0, 1].
        groups: (T', rows, columns) number of each patch's token, -1 for a pruned patch, which is hatched.

    Returns:
        (T, H', W', 3), enlarged by a whole number where patches are small.
    """
    clip = enlarged(clip, groups.shape[1])
    label = spread(groups, *clip.shape[:3])
    return with_borders(np.where(label[..., None] < 0, hatched(clip.shape), means(clip, label)), label, groups)


def means(clip: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The mean colour of each pixel's token: (T, H, W, 3)."""
    number = label + 1
    count = np.bincount(number.ravel()).clip(1)
    channels = [np.bincount(number.ravel(), clip[..., c].ravel()) / count for c in range(3)]
    return np.stack(channels, -1)[number]


def hatched(shape: tuple[int, ...]) -> np.ndarray:
    """Slanted stripes, for patches that are in no token."""
    line = max(1, shape[1] // 150)
    stripes = (np.add.outer(np.arange(shape[1]), np.arange(shape[2])) // line) % 3 == 0
    return np.broadcast_to(np.where(stripes, 0.45, 0.95)[None, ..., None], shape)


def with_borders(clip: np.ndarray, label: np.ndarray, groups: np.ndarray, times: int = 1) -> np.ndarray:
    """A clip with a light line, cased in dark, wherever two tokens meet: one of the two differs from any colour.

    Args:
        times: how many times as wide as usual.
    """
    line = max(1, clip.shape[1] // groups.shape[1] // 24) * times
    for width, colour in ((2 * line, DARK), (line, LIGHT)):
        clip = np.where(edges(label, width)[..., None], colour, clip)
    return clip


def edges(label: np.ndarray, width: int) -> np.ndarray:
    """Pixels nearer than `width` to another token; the border of the picture is none."""
    height, across = label.shape[1:]
    padded = np.pad(label, ((0, 0), (width, width), (width, width)), mode="edge")
    shifts = [(y, x) for y in (0, width, 2 * width) for x in (0, width, 2 * width)]
    return np.any([label != padded[:, y : y + height, x : x + across] for y, x in shifts], axis=0)


def colours(groups: np.ndarray) -> np.ndarray:
    """A colour for each patch, the same for all of a token, another for every token beside it in space or time.

    Args:
        groups: (T', rows, columns), as for `paint`.

    Returns:
        (T', rows, columns, 3): white where a token is one patch alone, of the palette elsewhere; a darker shade of it
        where a token touches all colours of the palette.
    """
    beside: dict[int, set[int]] = {}
    for axis in range(3):
        a, b = (np.take(groups, range(s, groups.shape[axis] - 1 + s), axis).ravel() for s in (0, 1))
        for one, other in np.unique(np.stack([a, b])[:, a != b], axis=1).T:
            beside.setdefault(int(one), set()).add(int(other))
            beside.setdefault(int(other), set()).add(int(one))
    names, patches = np.unique(groups[groups >= 0], return_counts=True)
    chosen: dict[int, int] = {}
    table, used = PALETTE, [0] * len(PALETTE)
    for name in names[np.argsort(-patches, kind="stable")][: int((patches > 1).sum())].tolist():
        taken = {chosen[other] for other in beside.get(name, ()) if other in chosen}
        free = [index for index in range(len(used)) if index not in taken]
        if not free:
            free = [len(used)]
            used.append(0)
            table = np.concatenate([table, table[-len(PALETTE)][None] * 0.8])
        chosen[name] = min(free, key=lambda index: used[index])
        used[chosen[name]] += 1
    painted = np.ones((groups.max() + 2, 3))
    for name, index in chosen.items():
        painted[name + 1] = table[index]
    return painted[groups + 1]


def sizes(groups: np.ndarray) -> np.ndarray:
    """How many patches each patch's token consists of; 0 for a pruned one."""
    counts = np.bincount((groups + 1).ravel(), minlength=groups.max() + 2)
    counts[0] = 0
    return counts[groups + 1]


def depths(steps: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """The block in which each patch's token first merged with another (or was pruned), -1 where it never did.

    Args:
        steps: (block, groups behind its merge), in their order.
    """
    found = np.full(steps[0][1].shape, -1)
    for block, groups in reversed(steps):
        found[sizes(groups) != 1] = block
    return found
