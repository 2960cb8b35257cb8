"""Page pictures with an unseen layer of text over them: a PDF that can be searched, and whose text can be copied.

In: page pictures with their Page. Out: a PDF file. Written without a library, page by page, so that a long document
needs the memory of one page. Text of any script: the font has no shapes (`glyphless.py`), so no fonts are needed.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qwenvl.tasks.documents.blocks import Page
from qwenvl.tasks.documents.glyphless import ADVANCE, ASCENT, DESCENT, MOST_LETTERS, NAME, to_unicode, truetype, utf16
from qwenvl.tasks.documents.text_layer import Word, words_of

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 14_400.0  # points that a side of a page may have (ISO 32000, annex C)
_CATALOG, _PAGES, _FONT, _DESCENDANT, _DESCRIPTOR, _FONT_FILE, _TO_UNICODE, _GLYPHS, _INFO = range(1, 10)


def searchable_pdf(
    pages: Iterable[tuple[Image, Page]], path: str | Path, *, title: str = "", dpi: float = 150, quality: int = 85
) -> None:
    """Write a PDF of page pictures whose text can be found, selected and copied. One page at a time is in memory.

    pages: (picture, page) pairs; the picture in any resolution (boxes are scaled by page.size).
    dpi: for pages without `points`. quality: of the JPEG pictures, 1 to 95. `path` appears only when all is written.
    """
    if not dpi > 0:
        raise ValueError(f"dpi is {dpi}; expected a number above 0, for example 150")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality is {quality}; expected 1 to 95")
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            writer = _Writer(file)
            for image, page in pages:
                writer.page(image, page, dpi, quality)
            if not writer.pages:
                raise ValueError("there are no pages: a PDF needs at least one")
            writer.finish(title)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _Writer:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.offsets: dict[int, int] = {}
        self.next = _INFO + 1
        self.pages: list[int] = []
        self.letters: dict[str, int] = {}
        self.at = 0
        self._write(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")

    def page(self, image: Image, page: Page, dpi: float, quality: int) -> None:
        import numpy as np

        grey = image.convert("L")
        width, height = page.points or (image.width * 72 / dpi, image.height * 72 / dpi)
        shrink = min(1.0, _LONGEST / max(width, height))
        width, height = width * shrink, height * shrink
        picture = grey if image.mode in ("1", "L") else image.convert("RGB")
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=quality)
        space = "/DeviceGray" if picture.mode == "L" else "/DeviceRGB"
        number = self._new(
            f"<< /Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} /ColorSpace {space} "
            f"/BitsPerComponent 8 /Filter /DCTDecode",
            jpeg.getvalue(),
        )
        content = [f"q {_n(width)} 0 0 {_n(height)} 0 0 cm /Page Do Q"]
        words = words_of(page, np.asarray(grey, dtype=np.uint8))
        if words:
            content += ["BT 3 Tr", *self._text(words, width / image.width, height / image.height, height), "ET"]
        stream = self._new("<< /Filter /FlateDecode", zlib.compress("\n".join(content).encode("ascii")))
        self.pages.append(
            self._new(
                f"<< /Type /Page /Parent {_PAGES} 0 R /MediaBox [0 0 {_n(width)} {_n(height)}] /Contents {stream} 0 R "
                f"/Resources << /Font << /Unseen {_FONT} 0 R >> /XObject << /Page {number} 0 R >> >> >>"
            )
        )

    def _text(self, words: list[Word], across: float, down: float, height: float) -> list[str]:
        """Operators that set each word into its box, and a space into the gap behind it."""
        lines = []
        for at, word in enumerate(words):
            size = max(word.height * down, 0.5)
            x, y = word.x * across, height - (word.y + word.height) * down - size * DESCENT / 1000
            lines.append(self._set(word.text[::-1] if word.rtl else word.text, x, y, size, word.width * across))
            following = words[at + 1] if at + 1 < len(words) else None
            if following is not None and word.follows and following.y == word.y and following.height == word.height:
                gap = following.x - word.x - word.width
                start = word.x + word.width
                if gap < 0:  # right to left: the space is on the left
                    gap, start = word.x - following.x - following.width, following.x + following.width
                lines.append(self._set(" ", start * across, y, size, max(gap, 0.5) * across))
        return lines

    def _set(self, text: str, x: float, y: float, size: float, width: float) -> str:
        codes = "".join(f"{self._code(letter):04X}" for letter in text)
        stretch = 100_000 * max(width, 0.1) / (len(text) * ADVANCE * size)
        return f"/Unseen {_n(size)} Tf {_n(stretch)} Tz 1 0 0 1 {_n(x)} {_n(y)} Tm <{codes}> Tj"

    def _code(self, letter: str) -> int:
        if letter not in self.letters and len(self.letters) >= MOST_LETTERS:
            return 0
        return self.letters.setdefault(letter, len(self.letters) + 1)

    def finish(self, title: str) -> None:
        font_file = truetype()
        system = "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
        self._put(_CATALOG, f"<< /Type /Catalog /Pages {_PAGES} 0 R >>")
        kids = " ".join(f"{number} 0 R" for number in self.pages)
        self._put(_PAGES, f"<< /Type /Pages /Count {len(self.pages)} /Kids [{kids}] >>")
        self._put(
            _FONT,
            f"<< /Type /Font /Subtype /Type0 /BaseFont /{NAME} /Encoding /Identity-H "
            f"/DescendantFonts [{_DESCENDANT} 0 R] /ToUnicode {_TO_UNICODE} 0 R >>",
        )
        self._put(
            _DESCENDANT,
            f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /{NAME} /CIDSystemInfo {system} /DW {ADVANCE} "
            f"/FontDescriptor {_DESCRIPTOR} 0 R /CIDToGIDMap {_GLYPHS} 0 R >>",
        )
        self._put(
            _DESCRIPTOR,
            f"<< /Type /FontDescriptor /FontName /{NAME} /Flags 5 /FontBBox [0 {DESCENT} {ADVANCE} {ASCENT}] "
            f"/ItalicAngle 0 /Ascent {ASCENT} /Descent {DESCENT} /CapHeight {ASCENT} /StemV 80 "
            f"/FontFile2 {_FONT_FILE} 0 R >>",
        )
        self._stream(_FONT_FILE, f"<< /Length1 {len(font_file)} /Filter /FlateDecode", zlib.compress(font_file))
        self._stream(_TO_UNICODE, "<< /Filter /FlateDecode", zlib.compress(to_unicode(self.letters)))
        glyphs = b"\0\1" * (len(self.letters) + 1)
        self._stream(_GLYPHS, "<< /Filter /FlateDecode", zlib.compress(glyphs))
        self._put(_INFO, f"<< /Title <FEFF{utf16(title)}> /Producer (qwenvl) >>")
        start = self.at
        self._write(f"xref\n0 {self.next}\n0000000000 65535 f \n".encode("ascii"))
        for number in range(1, self.next):
            self._write(f"{self.offsets[number]:010d} 00000 n \n".encode("ascii"))
        trailer = f"trailer << /Size {self.next} /Root {_CATALOG} 0 R /Info {_INFO} 0 R >>"
        self._write(f"{trailer}\nstartxref\n{start}\n%%EOF\n".encode("ascii"))

    def _new(self, head: str, stream: bytes | None = None) -> int:
        number = self.next
        self.next += 1
        if stream is None:
            self._put(number, head)
        else:
            self._stream(number, head, stream)
        return number

    def _stream(self, number: int, head: str, data: bytes) -> None:
        self._put(number, f"{head} /Length {len(data)} >>\nstream\n", data, "\nendstream")

    def _put(self, number: int, head: str, data: bytes = b"", tail: str = "") -> None:
        self.offsets[number] = self.at
        self._write(f"{number} 0 obj\n{head}".encode("ascii") + data + f"{tail}\nendobj\n".encode("ascii"))

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.at += len(data)


def _n(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
