"""PDF pages -> RGB pixels, by PDFium: what the process of its own does (pdf.py), or this one where none is wanted.

The process reads requests, each a line of JSON, on its standard input: first {"path", "password", "max_pixels",
"memory", "name"}, then {"page", "min_pixels", "max_pixels", "dpi", "text"} for every page. It answers with records on
its standard output, one letter and then: I, a line of JSON, the number of pages; P, a line of JSON about the page, and
the bytes of its RGB pixels; E, a line of JSON, an error.
"""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import suppress
from typing import IO, Any

from qwenvl.media.policy import MediaError
from qwenvl.media.resize import MAX_RATIO

POINT = 72  # points of an inch
FINE = 300  # dpi above which a page is not drawn unless min_pixels asks for it
MOST_TEXT = 2**20  # characters of a page's own text that are looked at
SPARE = 2**30  # bytes of address space for the interpreter and its libraries
_WRONG_PASSWORD = 4  # FPDF_ERR_PASSWORD


def scale_for(width: float, height: float, min_pixels: int, max_pixels: int, dpi: float | None = None) -> float:
    """Pixels of a point, for a page of so many points: as `dpi` says (300), less where the page would have more than
    max_pixels, more where it would have less than min_pixels."""
    scale, area = (FINE if dpi is None else dpi) / POINT, width * height
    return max(min(scale, math.sqrt(max_pixels / area)), math.sqrt(min_pixels / area))


class Renderer:
    """An open PDF. name: for messages. max_pixels: of the pictures on its pages. Raises MediaError.

    PDFium is not made for threads: one thread at a time may use it.
    """

    def __init__(self, path: str, name: str, password: str | None, max_pixels: int) -> None:
        import pypdfium2

        self._name, self._max_pixels = name, max_pixels
        self._library = pypdfium2
        try:
            self._pdf = pypdfium2.PdfDocument(path, password=password)
        except pypdfium2.PdfiumError as error:
            raise MediaError(_why_not(name, getattr(error, "err_code", None), password)) from None
        with suppress(Exception):  # without its forms a page is still worth reading
            self._pdf.init_forms()
        self.pages = len(self._pdf)

    def page(
        self, number: int, min_pixels: int, max_pixels: int, dpi: float | None, text: bool
    ) -> tuple[dict[str, Any], bytes]:
        """What a page is, and its RGB pixels. number: from 1. "points": (width, height) as it is shown; "box": (left,
        bottom, right, top) of what is shown in the page's own coordinates; "rotation": degrees clockwise."""
        name = f"page {number} of {self._name}"
        try:
            page = self._pdf[number - 1]
        except self._library.PdfiumError:
            raise MediaError(f"{name} is damaged and cannot be opened: get the file again") from None
        try:
            width, height = page.get_size()
            if not (width > 0 and height > 0 and math.isfinite(width * height)):
                raise MediaError(f"{name} has a size of {width} x {height} points: expected an area")
            if max(width, height) > MAX_RATIO * min(width, height):
                raise MediaError(f"{name} is {width:.0f} x {height:.0f} points: the model takes at most {MAX_RATIO}:1")
            self._check_pictures(page, name)
            bitmap = page.render(scale=scale_for(width, height, min_pixels, max_pixels, dpi), rev_byteorder=True)
            image = bitmap.to_pil().convert("RGB")
            known = {"width": image.width, "height": image.height, "points": [width, height],
                     "box": list(page.get_bbox()), "rotation": page.get_rotation(),
                     "text": page.get_textpage().get_text_bounded()[:MOST_TEXT] if text else ""}  # fmt: skip
            return known, image.tobytes()
        except self._library.PdfiumError as error:
            raise MediaError(f"{name} cannot be drawn: {error}") from None
        finally:
            page.close()

    def _check_pictures(self, page: Any, name: str) -> None:
        """MediaError where a picture on the page would unpack to more pixels than are allowed."""
        for picture in page.get_objects(filter=[self._library.raw.FPDF_PAGEOBJ_IMAGE]):
            width, height = picture.get_px_size()
            if width * height > self._max_pixels:
                raise MediaError(
                    f"{name} holds a picture of {width} x {height} = {width * height} pixels, the limit is "
                    f"{self._max_pixels}: leave the page out or raise max_pixels of the policy"
                )

    def close(self) -> None:
        self._pdf.close()


def _why_not(name: str, code: int | None, password: str | None) -> str:
    if code == _WRONG_PASSWORD:
        return (
            f"{name} is encrypted: {'give its password' if not password else 'the password given is not the right one'}"
        )
    return f"{name} is damaged, cut off or no PDF at all: open it in a viewer to see what is left, or get it again"


def main() -> None:
    """What the process does: requests, until there are no more."""
    sys.tracebacklimit = 0
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the records
    first = json.loads(sys.stdin.buffer.readline())
    _limit(first.pop("memory"))
    with suppress(BrokenPipeError):
        opened: list[Renderer] = []

        def open_it() -> None:
            opened.append(Renderer(**first))
            _send(answer, b"I", {"pages": opened[0].pages})

        _guarded(open_it, answer)
        for line in sys.stdin.buffer if opened else ():
            request = json.loads(line)

            def draw(wanted: dict[str, Any] = request) -> None:
                known, pixels = opened[0].page(wanted.pop("page"), **wanted)
                _send(answer, b"P", known)
                answer.write(pixels)

            _guarded(draw, answer)


def _guarded(work: Any, answer: IO[bytes]) -> None:
    try:
        work()
    except BrokenPipeError:
        raise  # nobody waits any more
    except Exception as error:
        known = isinstance(error, MediaError)
        _send(answer, b"E", {"text": str(error) if known else f"{type(error).__name__}: {error}", "known": known})
    answer.flush()


def _send(answer: IO[bytes], letter: bytes, value: dict[str, Any]) -> None:
    answer.write(letter + json.dumps(value).encode() + b"\n")


def _limit(memory: int) -> None:
    """Bounds that the system holds, where it can: memory, and no files written."""
    try:
        import resource
    except ImportError:
        return
    for bound, value in {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_AS: memory + SPARE}.items():
        hard = resource.getrlimit(bound)[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(bound, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)
