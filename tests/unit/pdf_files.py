"""Small PDF files written by hand: any number of pages, boxes, rotations, text, pictures, and encryption."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field


@dataclass
class PdfPage:
    """box: MediaBox; crop: CropBox. words: (x, y, text) in Helvetica 12. marks: filled rectangles (x, y, width, height,
    (r, g, b)). picture: (width, height) of a grey picture that claims to be as large."""

    box: tuple[float, float, float, float] = (0, 0, 300, 400)
    crop: tuple[float, float, float, float] | None = None
    rotate: int = 0
    words: list[tuple[float, float, str]] = field(default_factory=list)
    marks: list[tuple[float, float, float, float, tuple[float, float, float]]] = field(default_factory=list)
    picture: tuple[int, int] | None = None


def pdf_bytes(pages: list[PdfPage], password: str | None = None) -> bytes:
    """The file. password: its user password (40-bit RC4, which every reader knows)."""
    objects: dict[int, tuple[str, bytes | None]] = {}
    kids = []
    number = 4
    objects[3] = ("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", None)
    for page in pages:
        content = b"".join(b"%g %g %g rg %g %g %g %g re f\n" % (*mark[4], *mark[:4]) for mark in page.marks) + b"".join(
            b"0 g BT /F1 12 Tf %g %g Td (%s) Tj ET\n" % (x, y, text.encode("latin-1")) for x, y, text in page.words
        )
        resources = "/Font << /F1 3 0 R >>"
        if page.picture is not None:
            content += b"q 50 0 0 50 10 10 cm /Im0 Do Q\n"
            wide, high = page.picture
            data = zlib.compress(bytes(min(wide * high, 10_000)))
            objects[number + 2] = (
                f"<< /Type /XObject /Subtype /Image /Width {wide} /Height {high} /ColorSpace /DeviceGray "
                f"/BitsPerComponent 8 /Filter /FlateDecode /Length {len(data)} >>",
                data,
            )
            resources += f" /XObject << /Im0 {number + 2} 0 R >>"
        crop = "" if page.crop is None else "/CropBox [{} {} {} {}] ".format(*page.crop)
        turned = f"/Rotate {page.rotate} " if page.rotate else ""
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [{' '.join(map(str, page.box))}] {crop}{turned}"
            f"/Resources << {resources} >> /Contents {number + 1} 0 R >>",
            None,
        )
        objects[number + 1] = (f"<< /Length {len(content)} >>", content)
        kids.append(f"{number} 0 R")
        number += 3
    objects[1] = ("<< /Type /Catalog /Pages 2 0 R >>", None)
    objects[2] = (f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>", None)
    return _file(objects, number, password)


_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def _file(objects: dict[int, tuple[str, bytes | None]], size: int, password: str | None) -> bytes:
    trailer, key = f"/Size {size + 1} /Root 1 0 R", b""
    if password is not None:  # the standard security handler, revision 2
        padded = (password.encode("latin-1") + _PAD)[:32]
        owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
        name = b"0123456789abcdef"
        allowed = (0xFFFFFFFC).to_bytes(4, "little")
        key = hashlib.md5(padded + owner + allowed + name).digest()[:5]
        user = _rc4(key, _PAD)
        objects[size] = (
            f"<< /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P -4 >>",
            None,
        )
        trailer += f" /Encrypt {size} 0 R /ID [<{name.hex()}> <{name.hex()}>]"
    out, places = bytearray(b"%PDF-1.6\n"), {}
    for number, (head, data) in sorted(objects.items()):
        places[number] = len(out)
        out += f"{number} 0 obj\n{head}\n".encode("latin-1")
        if data is not None:
            if key:
                data = _rc4(hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10], data)
            out += b"stream\n" + data + b"\nendstream\n"
        out += b"endobj\n"
    start = len(out)
    out += f"xref\n0 {size + 1}\n0000000000 65535 f \n".encode()
    for number in range(1, size + 1):
        out += f"{places[number]:010d} 00000 n \n".encode() if number in places else b"0000000000 00000 f \n"
    return bytes(out + f"trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode())


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i, j, out = 0, 0, bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
