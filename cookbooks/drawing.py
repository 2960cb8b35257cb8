"""The pictures of the cookbooks, drawn with PIL: nothing is downloaded, and where everything is is known."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Share = tuple[float, float, float, float]  # x1, y1, x2, y2 as shares of the picture's sides


@dataclass(frozen=True)
class Part:
    """A part of a page: its tag in QwenVL HTML with further attributes, what is in it, and where it stands."""

    tag: str
    inner: str
    place: Share
    attributes: str = ""


@dataclass(frozen=True)
class PageDrawing:
    picture: Image.Image
    parts: tuple[Part, ...]

    def html(self, width: int, height: int) -> str:
        """The page as a checkpoint would write it down, in pixels of a picture of this size."""
        lines = [_element(part, width, height) for part in self.parts]
        return "```html\n<html><body>\n" + "\n".join(lines) + "\n</body></html>\n```"


def _element(part: Part, width: int, height: int) -> str:
    x1, y1, x2, y2 = part.place
    numbers = f"{x1 * width:.0f} {y1 * height:.0f} {x2 * width:.0f} {y2 * height:.0f}"
    return f'<{part.tag}{part.attributes} data-bbox="{numbers}">{part.inner}</{part.tag}>'


A4 = (1240, 1754)  # at 150 dots an inch
PLANTS = (("Plant", "Height", "Leaves"), ("Tomato", "42 cm", "31"), ("Bean", "67 cm", "54"), ("Basil", "18 cm", "77"))


def report() -> list[PageDrawing]:
    """Two pages of a report: headings, a paragraph, a table, a chart with a caption, a formula and a list."""
    return [_first_page(), _second_page()]


def _first_page() -> PageDrawing:
    sheet = _Sheet()
    sheet.text("h1", 110, "Growth on a Window Sill", 54)
    sheet.text("p", 220, "Three plants stood on the same window sill for six weeks.", 30)
    sheet.text("p", 270, "They had the same soil, and water on Mondays and Fridays.", 30)
    sheet.text("h2", 380, "Results", 40)
    sheet.table(470, PLANTS)
    sheet.chart(860, [42, 67, 18], "Figure 1: height after six weeks, in cm")
    return sheet.done()


def _second_page() -> PageDrawing:
    sheet = _Sheet()
    sheet.text("h2", 110, "What comes next", 40)
    sheet.formula(210, "h(t) = a t + b", "h(t) = a \\, t + b")
    sheet.text("p", 330, "The bean grew fastest; next year we shall measure:", 30)
    sheet.entries(400, ["the light in the morning", "the light in the afternoon", "the warmth of the soil"])
    return sheet.done()


class _Sheet:
    """A page that is written from top to bottom, and remembers what it wrote."""

    def __init__(self) -> None:
        self.picture = Image.new("RGB", A4, "white")
        self.pen = ImageDraw.Draw(self.picture)
        self.parts: list[Part] = []

    def done(self) -> PageDrawing:
        return PageDrawing(self.picture, tuple(self.parts))

    def add(self, tag: str, inner: str, place: tuple[float, float, float, float], attributes: str = "") -> None:
        wide, high = A4
        x1, y1, x2, y2 = place
        self.parts.append(Part(tag, inner, (x1 / wide, y1 / high, x2 / wide, y2 / high), attributes))

    def text(self, tag: str, y: int, text: str, size: int) -> None:
        self.add(tag, text, self.write(120, y, text, size))

    def write(self, x: float, y: float, text: str, size: int) -> tuple[float, float, float, float]:
        face = font(size)
        self.pen.text((x, y), text, fill="black", font=face)
        x1, y1, x2, y2 = self.pen.textbbox((x, y), text, font=face)
        return x1 - 4, y1 - 4, x2 + 4, y2 + 4

    def table(self, top: int, rows: tuple[tuple[str, ...], ...]) -> None:
        wide, high = 250, 70
        inner = []
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                x, y = 120 + column * wide, top + row * high
                self.pen.rectangle((x, y, x + wide, y + high), outline="black", width=2)
                self.write(x + 16, y + 18, cell, 28)
            name = "th" if row == 0 else "td"
            inner.append("<tr>" + "".join(f"<{name}>{cell}</{name}>" for cell in cells) + "</tr>")
        self.add("table", "".join(inner), (120, top, 120 + wide * len(rows[0]), top + high * len(rows)))

    def chart(self, top: int, values: list[int], caption: str) -> None:
        box = (120, top, 820, top + 420)
        self.pen.rectangle(box, outline="black", width=2)
        for place, (value, colour) in enumerate(zip(values, ("#D55E00", "#0072B2", "#009E73"), strict=True)):
            x = 190 + place * 210
            self.pen.rectangle((x, top + 400 - value * 5, x + 120, top + 400), fill=colour)
        self.add("div", "<img/>", box, ' class="image"')
        self.text("p", top + 440, caption, 26)

    def formula(self, y: int, text: str, latex: str) -> None:
        self.add("div", latex, self.write(420, y, text, 44), ' class="formula"')

    def entries(self, y: int, entries: list[str]) -> None:
        places = [self.write(150, y + 50 * number, f"{number + 1}. {text}", 30) for number, text in enumerate(entries)]
        inner = "".join(f"<li>{text}</li>" for text in entries)
        bottom, right = places[-1][3], max(place[2] for place in places)
        self.add("ol", inner, (150, places[0][1], right, bottom))


RECEIPT = {"company": "BLUE CAFE", "date": "2025-03-14", "total": "12.50"}
RECEIPT_LINES = (("BLUE CAFE", ""), ("2025-03-14", ""), ("COFFEE", "4.50"), ("CAKE", "8.00"), ("TOTAL", "12.50"))
SIGN_LINES = ("OPEN DAY", "GATE 12")


def receipt() -> Image.Image:
    """A receipt of the kind that the bundled model learned: capitals and digits, 280 x 308."""
    picture = Image.new("RGB", (280, 308), (250, 248, 240))
    pen, face = ImageDraw.Draw(picture), font(26)
    for number, (left, right) in enumerate(RECEIPT_LINES):
        y = 24 + 54 * number
        pen.text((22, y), left, fill="black", font=face)
        pen.text((258, y), right, fill="black", font=face, anchor="ra")
    return picture


def sign() -> Image.Image:
    """Two lines on a sign, white on blue, 308 x 140."""
    picture = Image.new("RGB", (308, 140), "#12408A")
    pen, face = ImageDraw.Draw(picture), font(36)
    for number, line in enumerate(SIGN_LINES):
        pen.text((154, 20 + 56 * number), line, fill="white", font=face, anchor="ma")
    return picture


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with PIL."""
    return ImageFont.load_default(size=size)
