"""Pictures of a parsed page: parts cut out as files, and the page with its blocks drawn on it.

In: the page as a PIL picture and its Page. Out: PNG files, or a new RGB picture; the input is unchanged.
The picture may have another resolution than page.size: boxes are scaled to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl.tasks.documents.blocks import Bbox, Block, Page

if TYPE_CHECKING:
    from PIL.Image import Image

CROPPED = ("table", "formula", "figure", "chart", "chemistry", "music")

# One colour a kind, after Okabe and Ito (2008); kinds that look alike on a page differ most.
_COLOURS = {
    "heading": "#D55E00",
    "paragraph": "#0072B2",
    "list": "#56B4E9",
    "item": "#56B4E9",
    "table": "#009E73",
    "formula": "#CC79A7",
    "figure": "#E69F00",
    "caption": "#8B6914",
    "chart": "#E69F00",
    "chemistry": "#CC79A7",
    "music": "#CC79A7",
}
_OTHERS = "#555555"


def crop_names(page: Page, kinds: Collection[str] = CROPPED) -> list[tuple[Block, str]]:
    """Blocks of these kinds that have a box, each with its file's name: "page-0001-figure-02.png" is the second figure.

    A name depends on the page alone: the table in a chart has a name even where charts are not asked for.
    """
    count: Counter[str] = Counter()
    named = []
    for block in page.walk():
        if block.box is not None:
            count[block.kind] += 1
            if block.kind in kinds:
                named.append((block, f"page-{page.number:04d}-{block.kind}-{count[block.kind]:02d}.png"))
    return named


def crop_blocks(
    image: Image, page: Page, folder: str | Path, kinds: Collection[str] = CROPPED, margin: int = 4
) -> list[Path]:
    """Write the parts named by `crop_names` into `folder` (made if missing), and say which files they are.

    margin: pixels of the page kept around a part.
    """
    across, down = _scale(image, page)
    paths = []
    for block, name in crop_names(page, kinds):
        assert block.box is not None
        x1, y1, x2, y2 = block.image_box or block.box
        left, top = max(0, round(x1 * across) - margin), max(0, round(y1 * down) - margin)
        right = min(image.width, max(left + 1, round(x2 * across) + margin))
        bottom = min(image.height, max(top + 1, round(y2 * down) + margin))
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, right, bottom)).convert("RGB").save(path)
        paths.append(path)
    return paths


def overlay(image: Image, page: Page) -> Image:
    """A copy of the page picture with each block outlined in its kind's colour and numbered in reading order.

    Items of a list and cells with boxes are outlined without a number. Lines grow with the picture.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    canvas = image.convert("RGB").copy()
    across, down = _scale(image, page)
    width = max(1, round(min(canvas.size) / 400))
    font = ImageFont.load_default(size=max(11.0, min(canvas.size) / 60))
    tint = Pictures.new("RGBA", canvas.size, (0, 0, 0, 0))
    washes = ImageDraw.Draw(tint)
    numbered = [(number, block, _scaled(block.box, across, down)) for number, block in _numbered(page) if block.box]
    for _, block, corners in numbered:
        washes.rectangle(corners, fill=(*_rgb(_COLOURS.get(block.kind, _OTHERS)), 28))
    canvas.paste(tint, (0, 0), tint)
    pen = ImageDraw.Draw(canvas)
    for number, block, corners in numbered:
        colour = _COLOURS.get(block.kind, _OTHERS)
        pen.rectangle(corners, outline=colour, width=width if number else max(1, width // 2))
    for number, block, (x1, y1, _, _) in numbered:
        if number:
            label = f"{number} {block.kind}"
            left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
            wide, high = right - left + 6, bottom - top + 6
            x = max(0.0, min(x1, canvas.width - wide))
            y = y1 - high if y1 >= high else y1
            pen.rectangle((x, y, x + wide, y + high), fill=_COLOURS.get(block.kind, _OTHERS))
            pen.text((x + 3 - left, y + 3 - top), label, fill="white", font=font)
    return canvas


def _numbered(page: Page) -> Iterator[tuple[int, Block]]:
    """(number, block) for blocks of the page in reading order; what lies within another has the number 0."""
    for number, block in enumerate((block for block in page.blocks if block.kind != "remark"), start=1):
        for at, inner in enumerate(block.walk()):
            yield (number if at == 0 else 0), inner


def _scale(image: Image, page: Page) -> tuple[float, float]:
    if page.size is None:
        return 1.0, 1.0
    return image.width / page.size.width, image.height / page.size.height


def _scaled(box: Bbox, across: float, down: float) -> Bbox:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
