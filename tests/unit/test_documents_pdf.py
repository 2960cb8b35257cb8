"""Searchable PDF: what is written is read back with pdfium, and stands where the letters of the picture stand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from qwenvl.tasks.documents import Block, Cell, Page, searchable_pdf
from qwenvl.tasks.documents.text_layer import words_of
from qwenvl.types import ImageSize

pdfium = pytest.importorskip("pypdfium2")
pytestmark = pytest.mark.feature(85)

SCALE = 72 / 150  # points in a pixel
STORY = (
    "The town measured its water for one year and found that use fell by four per cent in the dry months while the "
    "two new wells gave more than all the old ones taken together since they were dug"
)


@dataclass
class Sheet:
    """A page on which words are drawn, and where each of them stands: (word, x1, y1, x2, y2) in pixels."""

    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (1000, 1400), "white"))
    words: list[tuple[str, float, float, float, float]] = field(default_factory=list)

    def line(self, words: list[str], x: float, y: float, size: int = 28) -> float:
        """Draw, and give where the line ends."""
        pen, font = ImageDraw.Draw(self.image), ImageFont.load_default(size=size)
        for word in words:
            pen.text((x, y), word, fill="black", font=font)
            left, top, right, bottom = pen.textbbox((x, y), word, font=font)
            self.words.append((word, left, top, right, bottom))
            x += pen.textlength(word + " ", font=font)
        return x

    def story(self, text: str, x: float, y: float, wide: float, step: int = 44) -> tuple[float, float, float, float]:
        """Draw a paragraph broken into lines, and give the box around it."""
        pen, font = ImageDraw.Draw(self.image), ImageFont.load_default(size=28)
        line: list[str] = []
        top = y
        for word in text.split():
            if pen.textlength(" ".join([*line, word]), font=font) > wide:
                self.line(line, x, y)
                line, y = [], y + step
            line.append(word)
        self.line(line, x, y)
        return x - 6, top - 4, x + wide + 6, y + step


def size_of(image: Image.Image) -> ImageSize:
    return ImageSize(image.width, image.height, image.width, image.height)


def write(path: Path, sheet: Sheet, *blocks: Block) -> str:
    """Write a PDF of one page and give its text as pdfium reads it."""
    searchable_pdf([(sheet.image, Page(1, size_of(sheet.image), blocks))], path)
    return str(pdfium.PdfDocument(path)[0].get_textpage().get_text_range()).replace("\r\n", "\n")


def worst_place(path: Path, sheet: Sheet) -> float:
    """How far, in points, the ends of any drawn word are from those of its nearest twin in the text layer."""
    text_page = pdfium.PdfDocument(path)[0].get_textpage()
    worst = 0.0
    for word, x1, y1, x2, y2 in sheet.words:
        search = text_page.search(word, match_case=True, match_whole_word=True)
        misses = []
        while (hit := search.get_next()) is not None:
            first, last = text_page.get_charbox(hit[0]), text_page.get_charbox(hit[0] + hit[1] - 1)
            middle = (first[1] + first[3]) / 2
            expected = 672 - (y1 + y2) / 2 * SCALE
            misses.append(max(abs(first[0] - x1 * SCALE), abs(last[2] - x2 * SCALE), abs(middle - expected)))
        assert misses, f"{word} is not found"
        worst = max(worst, min(misses))
    return worst


def test_lines_stand_where_they_are_drawn(tmp_path: Path) -> None:
    sheet = Sheet()
    sheet.line(["Annual", "Water", "Report"], 80, 80, size=40)
    sheet.line(["City", "of", "Marl"], 80, 160)
    text = write(
        tmp_path / "a.pdf",
        sheet,
        Block("heading", "Annual Water Report", level=1, box=(70, 76, 560, 130)),
        Block("paragraph", "City of Marl", box=(60, 150, 500, 200)),
    )
    assert text == "Annual Water Report\nCity of Marl"
    assert worst_place(tmp_path / "a.pdf", sheet) < 3


def test_words_of_a_paragraph_stand_where_they_are_drawn(tmp_path: Path) -> None:
    sheet = Sheet()
    box = sheet.story(STORY, 90, 200, 700)
    text = write(tmp_path / "a.pdf", sheet, Block("paragraph", STORY, box=box))
    assert text.split() == STORY.split()
    assert text.count("\n") == 3
    assert worst_place(tmp_path / "a.pdf", sheet) < 3


def test_light_on_dark_and_another_resolution(tmp_path: Path) -> None:
    sheet = Sheet()
    sheet.story(STORY, 90, 200, 700)
    sheet.image = Image.fromarray(255 - np.asarray(sheet.image))
    half = ImageSize(500, 700, 504, 700)  # boxes speak of a picture of half the size
    page = Page(1, half, (Block("paragraph", STORY, box=(42, 98, 398, 190)),))
    searchable_pdf([(sheet.image, page)], tmp_path / "a.pdf")
    assert worst_place(tmp_path / "a.pdf", sheet) < 3


def test_cells_of_a_ruled_table_stand_where_they_are_drawn(tmp_path: Path) -> None:
    sheet = Sheet()
    rows = [["Item", "Amount"], ["Blue paint", "12.50"], ["Brush", "3.20"]]
    pen = ImageDraw.Draw(sheet.image)
    for at, (name, amount) in enumerate(rows):
        pen.rectangle((100, 200 + 60 * at, 800, 260 + 60 * at), outline="black", width=2)
        sheet.line(name.split(), 120, 214 + 60 * at)
        sheet.line([amount], 620, 214 + 60 * at)
    pen.line((600, 200, 600, 380), fill="black", width=2)
    table = Block("table", box=(100, 200, 800, 380), rows=tuple(tuple(Cell(text) for text in row) for row in rows))
    assert write(tmp_path / "a.pdf", sheet, table) == "Item Amount\nBlue paint 12.50\nBrush 3.20"
    assert worst_place(tmp_path / "a.pdf", sheet) < 3


def test_a_page_without_boxes_is_placed_by_its_ink(tmp_path: Path) -> None:
    sheet = Sheet()
    for at, line in enumerate(["ACME Limited", "12 Mill Lane", "Total 12.50"]):
        sheet.line(line.split(), 100, 100 + 200 * at)
    write(
        tmp_path / "a.pdf", sheet, Block("paragraph", "ACME Limited\n12 Mill Lane"), Block("paragraph", "Total 12.50")
    )
    assert worst_place(tmp_path / "a.pdf", sheet) < 3


@pytest.mark.parametrize(
    "text",
    [
        "增值税专用发票 合计 100.00 元",
        "日本語のテキストです",
        "Ευχαριστώ πολύ Αθήνα",
        "Съешь ещё этих мягких булок",
        "فاتورة رقم 12 من شركة النور",
        "חשבונית מספר 12 עולם",
        "देवनागरी लिपि",
        "x",
        "a — b © “q” ½",
    ],
)
def test_text_of_any_script_is_read_back(tmp_path: Path, text: str) -> None:
    sheet = Sheet()
    assert write(tmp_path / "a.pdf", sheet, Block("paragraph", text, box=(100, 100, 900, 150))) == text


def test_every_kind_of_block_can_be_found(tmp_path: Path) -> None:
    caption = Block("caption", "captionword")
    text = write(
        tmp_path / "a.pdf",
        Sheet(),
        Block("remark", "remarkword"),
        Block("list", box=(50, 50, 400, 200), children=(Block("item", "itemone"), Block("item", "itemtwo"))),
        Block("figure", box=(50, 250, 400, 500), children=(caption,)),
        Block("paragraph", "nobox"),
        Block("formula", r"\frac{a}{b}", box=(50, 600, 400, 650)),
        Block(
            "table",
            box=(50, 700, 400, 900),
            children=(caption,),
            rows=((Cell("cellone", rowspan=2), Cell("two")), (Cell("three"),)),
        ),
        Block("paragraph", "lastword"),
    )
    expected = ["itemone", "itemtwo", "captionword", "nobox", r"\frac{a}{b}", "cellone", "two", "three", "lastword"]
    assert [word for word in expected if word not in text] == []
    assert "remarkword" not in text


def test_a_letter_beyond_sixteen_bits_is_in_the_file(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    write(tmp_path / "a.pdf", Sheet(), Block("paragraph", "🎈 one 🎉", box=(100, 100, 500, 150)))
    assert pypdf.PdfReader(tmp_path / "a.pdf").pages[0].extract_text().split() == ["🎈", "one", "🎉"]


def test_the_picture_looks_the_same(tmp_path: Path) -> None:
    sheet = Sheet()
    box = sheet.story(STORY, 90, 200, 700)
    write(tmp_path / "a.pdf", sheet, Block("paragraph", STORY, box=box))
    shown = pdfium.PdfDocument(tmp_path / "a.pdf")[0].render(scale=150 / 72).to_pil().convert("L")
    difference = np.abs(np.asarray(shown)[:, :1000].astype(int) - np.asarray(sheet.image.convert("L")))
    assert difference.mean() < 2  # JPEG's; the text layer draws nothing
    raw = pdfium.raw
    texts = [o for o in pdfium.PdfDocument(tmp_path / "a.pdf")[0].get_objects() if o.type == raw.FPDF_PAGEOBJ_TEXT]
    assert {raw.FPDFTextObj_GetTextRenderMode(text) for text in texts} == {raw.FPDF_TEXTRENDERMODE_INVISIBLE}


def test_page_size_title_and_grey(tmp_path: Path) -> None:
    grey = Image.new("L", (300, 400), 200)
    pages = [(grey, Page(1, size_of(grey), points=(595.0, 842.0))), (grey, Page(2, None, error="broken"))]
    searchable_pdf(pages, tmp_path / "a.pdf", title="Größe", dpi=100)
    pdf = pdfium.PdfDocument(tmp_path / "a.pdf")
    assert [page.get_size() for page in pdf] == [(595.0, 842.0), (216.0, 288.0)]
    assert pdf.get_metadata_dict()["Title"] == "Größe"
    assert (tmp_path / "a.pdf").read_bytes().count(b"/DeviceGray") == 2


def test_nothing_is_left_where_a_page_fails(tmp_path: Path) -> None:
    def pages() -> Iterator[tuple[Image.Image, Page]]:
        image = Image.new("RGB", (100, 100))
        yield image, Page(1, size_of(image))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        searchable_pdf(pages(), tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="no pages"):
        searchable_pdf([], tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="quality is 0"):
        searchable_pdf(pages(), tmp_path / "a.pdf", quality=0)
    with pytest.raises(ValueError, match="dpi is 0"):
        searchable_pdf(pages(), tmp_path / "a.pdf", dpi=0)
    assert list(tmp_path.iterdir()) == []


def test_a_long_document_needs_the_memory_of_a_page(tmp_path: Path) -> None:
    def pages(count: int) -> Iterator[tuple[Image.Image, Page]]:
        for number in range(1, count + 1):
            image = Image.effect_noise((200, 300), 80)
            yield image, Page(number, size_of(image), (Block("paragraph", "word " * 50, box=(10, 10, 190, 290)),))

    def peak(count: int) -> int:
        tracemalloc.start()
        searchable_pdf(pages(count), tmp_path / "a.pdf")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    few = peak(4)
    many = peak(40)
    assert (tmp_path / "a.pdf").stat().st_size > 1_000_000
    assert many < few + 100_000


def test_words_stay_in_reading_order() -> None:
    blocks = (
        Block("paragraph", "first second", box=(0, 0, 100, 20)),
        Block("paragraph", "third", box=(0, 30, 100, 50)),
    )
    words = words_of(Page(1, ImageSize(100, 100, 100, 100), blocks), np.full((100, 100), 255, dtype=np.uint8))
    assert [word.text for word in words] == ["first", "second", "third"]
    assert all(word.x >= 0 and word.x + word.width <= 101 and word.height > 0 for word in words)
