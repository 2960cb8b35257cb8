"""What documents are read from: pictures, pictures of several pages (TIFF) and PDF files -> pages, one at a time.

In: a path, an address, bytes, a PIL picture or an array. Out: a PageFile, whose pages are upright RGB pictures with
their place on the PDF page. Nothing is drawn or decoded before its page is asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from qwenvl.media.policy import DEFAULT_POLICY, MediaError, MediaPolicy, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.media.images import ImageSource
    from qwenvl.tasks.parsing.pdf import PdfLimits

    Source: TypeAlias = ImageSource

Bbox = tuple[float, float, float, float]
PDF_MARK, WITHIN = b"%PDF-", 1024  # viewers look for the mark in the first kilobyte


@dataclass(frozen=True)
class Budget:
    """How large a PDF page is drawn: at `dpi` (None = 300), within an area of min_pixels to max_pixels. text: read the
    page's own text too. Pictures come as they are."""

    min_pixels: int
    max_pixels: int
    dpi: float | None = None
    text: bool = False


@dataclass(frozen=True)
class PdfPlace:
    """Where a picture lies on its PDF page. points: (width, height) of the page as it is shown. box: (left, bottom,
    right, top) of what is shown, in the page's own coordinates (y goes up); rotation: degrees clockwise by which
    that is turned to be shown: 0, 90, 180 or 270."""

    points: tuple[float, float]
    box: Bbox
    rotation: int = 0

    def to_points(self, box: Bbox, size: tuple[int, int]) -> Bbox:
        """A box in pixels of a picture of `size` -> points of the page as it is shown, from its upper left corner."""
        across, down = self.points[0] / size[0], self.points[1] / size[1]
        return box[0] * across, box[1] * down, box[2] * across, box[3] * down

    def to_pdf(self, box: Bbox, size: tuple[int, int]) -> Bbox:
        """The same in the page's own coordinates, which annotations and other PDF tools use: (left, bottom, right,
        top). Example: on an unrotated page of 100 x 200 points, 10 to 20 points from the top is y = 180 to 190."""
        left, top, right, bottom = self.to_points(box, size)
        wide, high = self.points
        x1, y1, x2, y2 = {
            0: (left, high - bottom, right, high - top),
            90: (top, left, bottom, right),
            180: (wide - right, top, wide - left, bottom),
            270: (high - bottom, wide - right, high - top, wide - left),
        }[self.rotation]
        return x1 + self.box[0], y1 + self.box[1], x2 + self.box[0], y2 + self.box[1]


@dataclass(frozen=True)
class PageImage:
    """A page as a picture. number: from 1. place: on its PDF page, if it has one. text: the PDF's own text of it."""

    number: int
    image: Image
    place: PdfPlace | None = None
    text: str = ""


class PageFile(Protocol):
    """An open document. digest: SHA-256 of its content. One thread at a time may ask for pages."""

    name: str
    digest: str
    count: int

    def page(self, number: int, budget: Budget) -> PageImage:
        """A page, from 1. Raises MediaError for one that cannot be had."""

    def close(self) -> None: ...


class PictureFile:
    """A picture, or the pictures of a TIFF file. limit: of pixels, from the policy; see load_image."""

    def __init__(self, source: Source, name: str, digest: str, policy: MediaPolicy) -> None:
        self._source, self._policy = source, policy
        self.name, self.digest = name, digest
        self.count = _frames(source, name) if isinstance(source, str) else 1

    def page(self, number: int, budget: Budget) -> PageImage:
        from PIL import Image

        from qwenvl.media import load_image

        if self.count == 1:
            try:
                return PageImage(number, load_image(self._source, self._policy))
            except MediaError as error:  # a file's name may be that of a copy
                raise MediaError(str(error).replace(str(self._source), self.name)) from None
        name = f"page {number} of {self.name}"
        try:
            with Image.open(cast(str, self._source), formats=["TIFF"]) as file:
                file.seek(number - 1)
                self._check(file.size, name)
                return PageImage(number, load_image(file.copy(), self._policy))
        except MediaError as error:
            raise MediaError(str(error).replace("the picture", name, 1)) from None
        except Exception as error:  # decoders raise whatever they like on damaged data
            raise MediaError(f"{name} is damaged or cut off ({type(error).__name__}): get the file again") from None

    def _check(self, size: tuple[int, int], name: str) -> None:
        if size[0] * size[1] > self._policy.max_pixels:
            raise MediaError(
                f"{name} has {size[0]} x {size[1]} = {size[0] * size[1]} pixels, the limit is "
                f"{self._policy.max_pixels}: leave it out or make it smaller"
            )

    def close(self) -> None:
        """Nothing is held between pages."""


def _check_picture(path: Path, name: str) -> None:
    """MediaError for a file that is plainly no picture. What is wrong within one is an error of its page."""
    from PIL import Image, UnidentifiedImageError

    from qwenvl.media.images import COMMON, OTHERS

    if not path.stat().st_size:
        raise MediaError(f"{name} is empty: expected a PDF or a picture")
    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in (*COMMON, *OTHERS) if kind in Image.OPEN]):
            pass
    except UnidentifiedImageError:
        raise MediaError(
            f"{name} is neither a PDF nor a picture that can be read: expected PDF, PNG, JPEG, WebP, GIF, BMP or TIFF"
        ) from None
    except Exception:  # too large, or damaged: load_image says which
        return


def _frames(path: str, name: str) -> int:
    """Pages of a TIFF file; 1 for all other pictures, of which animations show their first one."""
    from PIL import Image

    try:
        with Image.open(path, formats=["TIFF"]) as file:
            return int(getattr(file, "n_frames", 1))
    except Image.DecompressionBombError:
        raise MediaError(f"page 1 of {name} has more pixels than are opened: leave it out or make it smaller") from None
    except Exception:  # no TIFF, or a damaged one; load_image says what is wrong with it
        return 1


@contextmanager
def open_pages(
    source: Source,
    *,
    password: str | None = None,
    policy: MediaPolicy = DEFAULT_POLICY,
    limits: PdfLimits | None = None,
) -> Iterator[PageFile]:
    """The pages behind a source, as a context: path, file://, http(s):// or data: address, bytes, PIL picture, array.

    A PDF is known by its content. password: of an encrypted one. Raises MediaError for what cannot be had, is damaged
    or larger than the limits, and ValueError for a PDF without pypdfium2.
    """
    from qwenvl.media.sources import open_media
    from qwenvl.tasks.parsing.pdf import PdfFile, PdfLimits

    limits = limits or PdfLimits()
    if not isinstance(source, str | os.PathLike | bytes | bytearray):
        yield _in_memory(source, policy)
        return
    named = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    given = named and named[:5].lower() != "data:"
    name = shown(named) if given else "the document"
    with open_media(source, replace(policy, max_video_bytes=limits.max_bytes), "document") as path:
        with path.open("rb") as file:
            is_pdf = PDF_MARK in file.read(WITHIN)
            file.seek(0)
            size, most = path.stat().st_size, limits.max_bytes if is_pdf else policy.max_bytes
            if size > most:
                raise MediaError(f"{name} has {size} bytes, the limit is {most}: split it")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        opened: PageFile
        if is_pdf:
            opened = PdfFile(str(path), name, digest, password, policy, limits)
        else:
            _check_picture(path, name)
            opened = PictureFile(str(path), name, digest, policy)
        try:
            yield opened
        finally:
            opened.close()


def _in_memory(source: Any, policy: MediaPolicy) -> PageFile:
    from qwenvl.media import load_image

    image = load_image(source, policy)
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return PictureFile(image, "the picture", digest, policy)


def chosen_pages(pages: str | int | Iterable[int] | None, count: int) -> list[int]:
    """Which pages of `count` are meant: "1-3,7", "5-" (to the end), numbers from 1, or one; None = all. Ascending,
    each once. ValueError for what is no page."""
    if pages is None:
        return list(range(1, count + 1))
    there = f"the document has {count} page{'s' if count > 1 else ''}"
    if isinstance(pages, str):
        numbers = [number for part in pages.split(",") for number in _range(part.strip(), count, there, pages)]
    else:
        numbers = [pages] if isinstance(pages, int) else list(pages)
    wrong = [number for number in numbers if not 1 <= number <= count]
    if wrong:
        raise ValueError(f"page {wrong[0]} is not there: {there}")
    if not numbers:
        raise ValueError(f"no pages are chosen: give some of them, such as 1-3,7; {there}")
    return sorted(set(numbers))


def _range(part: str, count: int, there: str, whole: str) -> range:
    found = re.fullmatch(r"(\d{1,9})(?:\s*(-)\s*(\d{1,9})?)?", part)
    if found is None:
        raise ValueError(f"pages {whole!r} is not understood: expected numbers and ranges, such as 1-3,7 or 5-")
    first = int(found[1])
    last = int(found[3]) if found[3] else count if found[2] else first
    if found[3] and last < first:
        raise ValueError(f"pages {part!r} goes backwards: expected the smaller number first")
    if max(first, last) > count:
        raise ValueError(f"page {max(first, last)} is not there: {there}")
    return range(first, last + 1)
