"""A sheet of labelled panels at their own resolution, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, ALARM = (20, 20, 20), (110, 110, 110), (170, 0, 0)


@dataclass(frozen=True)
class Scale:
    """A bar of colours.

    Args:
        colours: (n, 3) in [0, 1], from left to right.
        ticks: where on the bar, from 0 to 1, and the word there; where words have no room the later ones are left out.
    """

    colours: np.ndarray
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Panel:
    """A picture with a caption.

    Args:
        pixels: (H, W, 3) in [0, 1].
        caption: shown below, in as many lines as it needs.
        scale: of its colours, below the caption.
    """

    pixels: np.ndarray
    caption: str
    scale: Scale | None = None


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's own font, which is there wherever the project is."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def compose(
    panels: Sequence[Panel], columns: int, head: Sequence[str] = (), alarm: str = "", width: int = 0
) -> Image.Image:
    """Panels of one size, row by row, below some lines.

    Args:
        panels: all of the first one's height and width.
        columns: panels in a row.
        head: lines above; the first one larger.
        alarm: a line above all, on red, where what is shown means little.
        width: of the text of a panel's caption, in pixels, where the panel is narrower.
    """
    height, across = panels[0].pixels.shape[:2]
    cell = max(across, width)
    text = max(11, round(cell / 26))
    gap, line = round(text * 0.9), round(text * 1.35)
    captions = [wrapped(panel.caption, cell, font(text)) for panel in panels]
    below = [
        line * max(map(len, captions[first : first + columns]))
        + (round(2.2 * line) if any(panel.scale for panel in panels[first : first + columns]) else 0)
        for first in range(0, len(panels), columns)
    ]
    uppers = [sum(below[:row]) + row * (height + gap // 2 + gap) for row in range(len(below) + 1)]
    inner = columns * cell + (columns - 1) * gap
    lines = [
        (part, font(round(text * (1.35 if i == 0 else 1)), i == 0))
        for i, whole in enumerate(head)
        for part in wrapped(whole, inner, font(round(text * (1.35 if i == 0 else 1)), i == 0))
    ]
    banner = wrapped(alarm, inner - gap, font(round(text * 1.2), True)) if alarm else []
    top = gap + round(len(banner) * line * 1.25) + gap * bool(banner) + round(len(lines) * line * 1.15) + gap // 2
    sheet = Image.new("RGB", (inner + 2 * gap, top + uppers[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    y = gap // 2
    if banner:
        end = y + round(len(banner) * line * 1.25) + gap // 2
        draw.rectangle((gap, y, gap + inner, end), fill=ALARM)
        for number, part in enumerate(banner):
            at = (gap * 1.5, y + gap // 4 + number * line * 1.25)
            draw.text(at, part, fill="white", font=font(round(text * 1.2), True))
        y = end + gap // 2
    for part, face in lines:
        draw.text((gap, y), part, fill=INK, font=face)
        y += round(line * 1.15)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left = gap + column * (cell + gap)
        upper = top + uppers[row]
        sheet.paste(Image.fromarray(to_bytes(panel.pixels)), (left, upper))
        under = upper + height + gap // 2
        for part in captions[number]:
            draw.text((left, under), part, fill=INK, font=font(text))
            under += line
        if panel.scale:
            _draw_scale(sheet, draw, panel.scale, (left, under + line // 4), across, line, font(text))
    return sheet


def _draw_scale(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    scale: Scale,
    at: tuple[int, int],
    across: int,
    line: int,
    face: ImageFont.FreeTypeFont,
) -> None:
    left, upper = at
    bar = scale.colours[np.arange(across) * len(scale.colours) // across][None].repeat(max(4, line // 2), 0)
    sheet.paste(Image.fromarray(to_bytes(bar)), at)
    below = upper + len(bar)
    for start, x, word in placed(scale.ticks, across, face):
        draw.line((left + x, below, left + x, below + 3), fill=INK)
        draw.text((left + start, below + 4), word, fill=FAINT, font=face)


def placed(
    ticks: Sequence[tuple[float, str]], across: int, face: ImageFont.FreeTypeFont
) -> list[tuple[float, int, str]]:
    """The ticks of a `Scale` whose words have room: where the word begins, where the tick is, and the word."""
    room, found = face.getlength(" ") * 2, list[tuple[float, int, str]]()
    for place, word in ticks:
        x, length = round(place * (across - 1)), face.getlength(word)
        start = min(max(0.0, x - length / 2), across - length)
        if all(start > s + face.getlength(w) + room or start + length + room < s for s, _, w in found):
            found.append((start, x, word))
    return found


def answers(edge: int, top: Sequence[tuple[str, float]], note: str = "") -> np.ndarray:
    """A panel of class names with bars for their probabilities, (edge, edge, 3).

    Args:
        top: names and probabilities, the largest first.
        note: below, in small print.
    """
    image = Image.new("RGB", (edge, edge), (246, 246, 246))
    draw = ImageDraw.Draw(image)
    pad, text = edge // 24, max(11, edge // 22)
    face, step = font(text), (edge - edge // 6) // max(len(top), 1)
    for number, (name, share) in enumerate(top):
        y = pad + number * step
        percent = f"{100 * share:.1f} %"
        room = edge - 2 * pad - draw.textlength(percent + " ", font=face)
        draw.text((pad, y), clipped(name, room, face), fill=INK, font=face)
        draw.text((edge - pad - draw.textlength(percent, font=face), y), percent, fill=INK, font=face)
        y += round(text * 1.4)
        draw.rectangle((pad, y, edge - pad, y + text // 2), outline=(200, 200, 200))
        draw.rectangle((pad, y, pad + (edge - 2 * pad) * share, y + text // 2), fill=(0, 114, 178))
    for number, part in enumerate(wrapped(note, edge - 2 * pad, font(max(10, text * 4 // 5)))):
        y = edge - edge // 7 + number * text
        draw.text((pad, y), part, fill=FAINT, font=font(max(10, text * 4 // 5)))
    return np.asarray(image) / 255


def wrapped(text: str, width: float, face: ImageFont.FreeTypeFont) -> list[str]:
    """A text in lines of at most `width` pixels; a word that is longer is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and face.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(clipped(word, width, face))
    return lines


def clipped(text: str, width: float, face: ImageFont.FreeTypeFont) -> str:
    """A text of at most `width` pixels, its end left out if need be."""
    text = text[:200]
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8."""
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
