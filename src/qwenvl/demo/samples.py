"""The sample pictures and the sample video that are shipped: drawn with plain PIL calls, not with the generator that
trains the model.

`python -m qwenvl.demo.samples FOLDER` writes them again, pictures byte for byte with the same Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).parent / "pictures"


def three_shapes() -> Image.Image:
    """A red circle, a blue square and a green triangle on white, 280 x 210, hard edges."""
    picture = Image.new("RGB", (280, 210), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((24, 20, 94, 90), fill="red")
    pen.rectangle((176, 36, 246, 106), fill="blue")
    pen.polygon([(140, 118), (96, 194), (184, 194)], fill="green")
    return picture


def two_circles() -> Image.Image:
    """Two yellow circles and a white square on dark blue-grey, 320 x 200, smooth edges."""
    picture = Image.new("RGB", (960, 600), (47, 62, 80))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((90, 80, 330, 320), fill=(255, 221, 0))
    pen.ellipse((620, 310, 890, 580), fill=(255, 221, 0))
    pen.rectangle((540, 60, 740, 260), fill="white")
    return picture.resize((320, 200), Image.Resampling.LANCZOS)


def tall_note() -> Image.Image:
    """An orange triangle over a purple circle on a pale ground, 150 x 300, smooth edges."""
    picture = Image.new("RGB", (450, 900), (238, 242, 230))
    pen = ImageDraw.Draw(picture)
    pen.polygon([(230, 90), (90, 340), (370, 340)], fill=(255, 140, 0))
    pen.ellipse((110, 560, 350, 800), fill=(128, 0, 128))
    return picture.resize((150, 300), Image.Resampling.LANCZOS)


def one_missing() -> Image.Image:
    """three_shapes without its circle."""
    picture = three_shapes()
    ImageDraw.Draw(picture).ellipse((24, 20, 94, 90), fill="white")
    return picture


def open_sign() -> Image.Image:
    """OPEN, and the hours below, white on dark green, 200 x 120."""
    picture = Image.new("RGB", (200, 120), (20, 70, 50))
    pen = ImageDraw.Draw(picture)
    pen.text((44, 20), "OPEN", fill="white", font=ImageFont.load_default(42))
    pen.text((42, 76), "9:00-18:00", fill="white", font=ImageFont.load_default(24))
    return picture


def receipt() -> Image.Image:
    """A receipt of the Corner Cafe: date, two items, total; black on a pale ground, 220 x 200."""
    picture = Image.new("RGB", (220, 200), (248, 247, 242))
    pen, letters = ImageDraw.Draw(picture), ImageFont.load_default(23)
    rows = (("CORNER CAFE", ""), ("12/03/2024", ""), ("COFFEE", "3.50"), ("CAKE", "4.25"), ("TOTAL", "7.75"))
    for i, (left, right) in enumerate(rows):
        y = 10 + 37 * i
        pen.text((14, y), left, fill="black", font=letters)
        pen.text((206 - letters.getlength(right), y), right, fill="black", font=letters)
    return picture


def square_appears(frame: int) -> Image.Image:
    """A frame of the video: a red circle moves from left to right, a blue square is there from second 3 on."""
    picture = Image.new("RGB", (240, 180), (250, 250, 245))
    pen = ImageDraw.Draw(picture)
    x = 12 + round(150 * frame / (CLIP_FRAMES - 1))
    pen.ellipse((x, 20, x + 56, 76), fill="red")
    if frame >= 3 * CLIP_RATE:
        pen.rectangle((150, 106, 206, 162), fill="blue")
    return picture


SAMPLES = {
    "three-shapes.png": three_shapes,
    "two-circles.png": two_circles,
    "tall-note.png": tall_note,
    "one-missing.png": one_missing,
    "open-sign.png": open_sign,
    "receipt.png": receipt,
}
CLIP, CLIP_RATE, CLIP_FRAMES = "square-appears.mp4", 12, 60  # name, frames a second, frames


def write(folder: Path) -> list[Path]:
    """Draw every sample into an existing folder; their paths."""
    paths = []
    for name, draw in SAMPLES.items():
        paths.append(folder / name)
        draw().save(paths[-1], optimize=True)
    return [*paths, write_clip(folder / CLIP)]


def write_clip(path: Path) -> Path:
    """The sample video, H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE, options={"crf": "18", "preset": "veryslow"})
        first = square_appears(0)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, "yuv420p"
        for i in range(CLIP_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(square_appears(i))))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES):
        print(path)
