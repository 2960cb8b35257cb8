"""What documents are read from: PDF files and pictures -> page pictures, and their place on the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pdf_files import PdfPage, pdf_bytes
from PIL import Image

from qwenvl.media import MediaError, MediaPolicy
from qwenvl.tasks.parsing import Budget, PageFile, PageImage, PdfLimits, chosen_pages, open_pages
from qwenvl.tasks.parsing.ahead import MOST_PAGES, Ahead
from qwenvl.tasks.parsing.pdf import PdfFile
from qwenvl.tasks.parsing.pdf_render import scale_for

pytest.importorskip("pypdfium2")

SMALL = Budget(10_000, 120_000)
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
HERE = PdfLimits(isolate=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PDF: four rotations of a page with a crop box, a page with a huge picture, a sliver, text."""
    mark = [(160, 230, 40, 20, RED)]
    crop = (150.0, 200.0, 350.0, 500.0)
    pages = [PdfPage(box=(100, 100, 400, 600), crop=crop, rotate=turn, marks=mark) for turn in (0, 90, 180, 270)]
    pages.append(PdfPage(picture=(100_000, 100_000)))
    pages.append(PdfPage(box=(0, 0, 14_400, 10)))
    pages.append(PdfPage(words=[(20, 350, "Hello page seven"), (20, 300, "of the waterworks")]))
    path = tmp_path_factory.mktemp("pdf") / "corpus.pdf"
    path.write_bytes(pdf_bytes(pages))
    return path


@pytest.fixture(scope="module")
def pdf(corpus: Path) -> Iterator[PageFile]:
    with open_pages(corpus) as file:
        yield file


def box_of(image: Image.Image, colour: int) -> tuple[int, int, int, int]:
    """Where the picture has a strong colour: x1, y1, x2, y2."""
    pixels = np.asarray(image).astype(int)
    others = [c for c in range(3) if c != colour]
    there = (pixels[..., colour] > 200) & (pixels[..., others] < 60).all(axis=-1)
    rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_boxes_go_back_to_the_pages_own_coordinates(pdf: PageFile, number: int) -> None:
    page = pdf.page(number, SMALL)
    assert page.place is not None
    assert page.place.points == ((200, 300) if number % 2 else (300, 200))
    assert (page.place.box, page.place.rotation) == ((150, 200, 350, 500), 90 * (number - 1))
    found = page.place.to_pdf(box_of(page.image, 0), page.image.size)
    assert found == pytest.approx((160, 230, 200, 250), abs=1.0)


def test_points_are_counted_from_the_upper_left_corner_as_shown(pdf: PageFile) -> None:
    page = pdf.page(1, SMALL)
    assert page.place is not None
    found = page.place.to_points(box_of(page.image, 0), page.image.size)
    assert found == pytest.approx((10, 250, 50, 270), abs=1.0)


@pytest.mark.parametrize(
    ("size", "least", "most", "dpi", "scale"),
    [
        ((612, 792), 401_408, 1_605_632, None, (1_605_632 / (612 * 792)) ** 0.5),  # letter: as large as it may be
        ((200, 300), 10_000, 10_000_000, None, 300 / 72),  # a card: 300 dpi and no more
        ((20, 30), 401_408, 1_605_632, None, (401_408 / 600) ** 0.5),  # a stamp: what the model needs
        ((200, 300), 10_000, 10_000_000, 72, 1.0),
        ((200, 300), 10_000, 30_000, 144, (30_000 / 60_000) ** 0.5),
    ],
)
def test_the_area_decides_the_resolution(
    size: tuple[float, float], least: int, most: int, dpi: float | None, scale: float
) -> None:
    assert scale_for(*size, least, most, dpi) == pytest.approx(scale)


def test_a_page_keeps_its_shape_and_its_budget(pdf: PageFile) -> None:
    image = pdf.page(1, Budget(401_408, 1_605_632)).image
    assert image.size[0] / image.size[1] == pytest.approx(2 / 3, rel=0.002)
    assert 0.99 * 1_041_667 < image.size[0] * image.size[1] < 1.01 * 1_041_667  # 300 dpi


def test_the_own_text_of_a_page(pdf: PageFile) -> None:
    own = pdf.page(7, Budget(10_000, 20_000, text=True)).text
    assert own.split() == ["Hello", "page", "seven", "of", "the", "waterworks"]
    assert pdf.page(7, SMALL).text == ""


def test_a_picture_that_unpacks_to_too_much_is_refused_by_name(pdf: PageFile) -> None:
    with pytest.raises(MediaError, match=r"page 5 of .*corpus.pdf holds a picture of 100000 x 100000"):
        pdf.page(5, SMALL)
    assert pdf.page(1, SMALL).image.size  # the others go on


def test_a_sliver_is_refused_by_name(pdf: PageFile) -> None:
    with pytest.raises(MediaError, match=r"page 6 of .*corpus.pdf is 14400 x 10 points: the model takes at most 200:1"):
        pdf.page(6, SMALL)


def test_encrypted_files_need_their_password(tmp_path: Path) -> None:
    path = tmp_path / "secret.pdf"
    path.write_bytes(pdf_bytes([PdfPage(words=[(20, 350, "inside")])], password="open sesame"))
    with (
        pytest.raises(MediaError, match=r".*secret.pdf is encrypted: give its password"),
        open_pages(path, limits=HERE),
    ):
        pass
    with (
        pytest.raises(MediaError, match="the password given is not the right one"),
        open_pages(path, password="wrong", limits=HERE),
    ):
        pass
    with open_pages(path, password="open sesame", limits=HERE) as file:
        assert file.page(1, Budget(10_000, 20_000, text=True)).text == "inside"


@pytest.mark.parametrize("cut", [20, 300])
def test_broken_files_are_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "broken.pdf"
    path.write_bytes(pdf_bytes([PdfPage()])[:cut])
    with pytest.raises(MediaError, match=r".*broken.pdf is damaged, cut off or no PDF at all"), open_pages(path):
        pass


def test_files_and_runs_have_limits(corpus: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(MediaError, match=r".*corpus.pdf has \d+ bytes, the limit is 100"),
        open_pages(corpus, limits=PdfLimits(max_bytes=100)),
    ):
        pass
    with pytest.raises(MediaError, match=r".*nothing.pdf does not exist"), open_pages(tmp_path / "nothing.pdf"):
        pass
    with (
        pytest.raises(MediaError, match="is outside the folders"),
        open_pages(corpus, policy=MediaPolicy(allowed_folders=(tmp_path,))),
    ):
        pass


def test_a_page_that_takes_too_long_ends_its_process_and_no_other(corpus: Path) -> None:
    with open_pages(corpus) as file:
        assert isinstance(file, PdfFile)
        file._limits = PdfLimits(page_seconds=0.0)
        with pytest.raises(MediaError, match=r"drawing page 1 of .*corpus.pdf took longer than 0 seconds"):
            file.page(1, SMALL)
        file._limits = PdfLimits()
        assert file.page(1, SMALL).number == 1  # in a new process


def test_a_crash_is_an_error_of_its_page(corpus: Path) -> None:
    with open_pages(corpus) as file:
        assert isinstance(file, PdfFile)
        assert file._process is not None
        file._process.kill()
        with pytest.raises(MediaError, match=r"drawing page 2 of .*corpus.pdf ended its process: the file is damaged"):
            file.page(2, SMALL)
        assert file.page(2, SMALL).number == 2


def test_pictures_and_bytes_are_documents_of_one_page(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), "navy")
    image.save(tmp_path / "a.png")
    sources = [image, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(image)]
    digests = []
    for source in sources:
        with open_pages(source) as file:
            page = file.page(1, SMALL)
            assert (file.count, page.image.size, page.place) == (1, (60, 40), None)
            digests.append(file.digest)
    assert digests[1] == digests[2] == digests[3]
    assert digests[0] == digests[4]


def test_a_tiff_file_has_many_pages(tmp_path: Path) -> None:
    pages = [Image.new("L", (40 + i, 30), 40 * i) for i in range(4)]
    pages[0].save(tmp_path / "fax.tiff", save_all=True, append_images=pages[1:])
    with open_pages(tmp_path / "fax.tiff") as file:
        assert file.count == 4
        assert [file.page(i, SMALL).image.size for i in (3, 1)] == [(42, 30), (40, 30)]
        assert file.page(4, SMALL).image.getpixel((0, 0)) == (120, 120, 120)
    with open_pages(tmp_path / "fax.tiff", policy=MediaPolicy(max_pixels=42 * 30)) as file:
        assert file.page(3, SMALL).number == 3
        with pytest.raises(MediaError, match=r"page 4 of .*fax.tiff has 43 x 30 = 1290 pixels, the limit is 1260"):
            file.page(4, SMALL)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1-3,7", [1, 2, 3, 7]), ("5-", [5, 6, 7, 8, 9]), ("9", [9]), (" 2 , 1-2", [1, 2]), (None, list(range(1, 10)))],
)
def test_page_ranges(text: str | None, numbers: list[int]) -> None:
    assert chosen_pages(text, 9) == numbers
    assert chosen_pages(numbers, 9) == numbers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10", "page 10 is not there: the document has 9 pages"),
        ("3-12", "page 12 is not there"),
        ("0", "page 0 is not there"),
        ("5-2", "goes backwards"),
        ("a", "is not understood: expected numbers and ranges, such as 1-3,7"),
        ("", "is not understood"),
        ("-3", "is not understood"),
        ("1-1000000000000", "is not understood"),
    ],
)
def test_page_ranges_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chosen_pages(text, 9)


def test_pages_are_drawn_a_few_ahead_and_no_more() -> None:
    drawn: list[int] = []
    gate = threading.Event()

    def read(number: int) -> PageImage:
        gate.wait(5)
        drawn.append(number)
        if number == 3:
            raise MediaError("page 3 is gone")
        return PageImage(number, Image.new("RGB", (4, 4)))

    with Ahead(read, range(1, 21)) as ahead:
        assert not ahead.ready
        gate.set()
        deadline = time.monotonic() + 5
        while len(drawn) < MOST_PAGES and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(drawn) == MOST_PAGES
        taken = [ahead.take() for _ in range(20)]
        assert not len(ahead)
    assert [number for number, _ in taken] == list(range(1, 21))
    assert [isinstance(page, MediaError) for _, page in taken] == [number == 3 for number in range(1, 21)]


def test_large_pages_wait_alone_and_a_stopped_run_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl.tasks.parsing.ahead.MOST_BYTES", 3 * 100 * 100)
    drawn: list[int] = []

    def read(number: int) -> PageImage:
        drawn.append(number)
        return PageImage(number, Image.new("RGB", (100, 100)))

    before = threading.active_count()
    with Ahead(read, range(1, 10)) as ahead:
        ahead.take()
        time.sleep(0.1)
        assert len(drawn) == 2
    assert threading.active_count() == before
