"""A font whose letters have no shape: text in it can be found and copied, and is never seen.

In: the characters that a PDF uses. Out: the TrueType file and the CMap that PDF wants beside it (ISO 32000, 9.7, 9.10).
Every script works, as no shapes are needed; all letters are half an em wide, and writers stretch words to their place.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

NAME = "QwenvlUnseen"
ADVANCE = 500  # of every letter, in thousandths of the font size
ASCENT, DESCENT = 800, -200
MOST_LETTERS = 65_000  # of 65,535 that two bytes can tell apart


def truetype() -> bytes:
    """A TrueType file of two letters: none, and one whose outline is a line from corner to corner of its box.

    A line encloses nothing, so nothing is drawn; but the letter has a box, which readers ask for (pdfium passes over
    text that is 0 wide).
    """
    line = struct.pack(
        ">hhhhhHHBBhhhh", 1, 0, DESCENT, ADVANCE, ASCENT, 1, 0, 1, 1, 0, ADVANCE, DESCENT, ASCENT - DESCENT
    )
    tables = {
        b"cmap": struct.pack(">HHHHI7H", 0, 1, 3, 1, 12, 4, 24, 0, 2, 2, 0, 0)
        + struct.pack(">5H", 0xFFFF, 0, 0xFFFF, 1, 0),
        b"glyf": line,
        b"head": struct.pack(
            ">IIIIHHqqhhhhHHhhh",
            0x10000,
            0x10000,
            0,
            0x5F0F3CF5,
            3,
            1000,
            0,
            0,
            0,
            DESCENT,
            ADVANCE,
            ASCENT,
            0,
            8,
            2,
            0,
            0,
        ),
        b"hhea": struct.pack(">IhhhHhhhhhhhhhhhH", 0x10000, ASCENT, DESCENT, 0, ADVANCE, 0, 0, ADVANCE, 1, *[0] * 7, 2),
        b"hmtx": struct.pack(">HhHh", ADVANCE, 0, ADVANCE, 0),
        b"loca": struct.pack(">HHH", 0, 0, len(line) // 2),
        b"maxp": struct.pack(">IH13H", 0x10000, 2, *[0] * 13),
    }
    offset = 12 + 16 * len(tables)
    header = struct.pack(">IHHHH", 0x10000, len(tables), 64, 2, 16 * len(tables) - 64)
    body = b""
    for name, data in sorted(tables.items()):
        padded = data + b"\0" * (-len(data) % 4)
        checksum = sum(struct.unpack(f">{len(padded) // 4}I", padded)) & 0xFFFFFFFF
        header += name + struct.pack(">III", checksum, offset + len(body), len(data))
        body += padded
    return header + body


def to_unicode(letters: Mapping[str, int]) -> bytes:
    """The CMap that says which character each two-byte code stands for. letters: character -> code."""
    lines = [
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap",
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def",
        f"/CMapName /{NAME}-UCS def /CMapType 2 def",
        "1 begincodespacerange <0000> <FFFF> endcodespacerange",
    ]
    pairs = [f"<{code:04X}> <{utf16(letter)}>" for letter, code in letters.items()]
    for start in range(0, len(pairs), 100):  # the most that one block may hold
        block = pairs[start : start + 100]
        lines += [f"{len(block)} beginbfchar", *block, "endbfchar"]
    lines.append("endcmap CMapName currentdict /CMap defineresource pop end end")
    return "\n".join(lines).encode("ascii")


def utf16(text: str) -> str:
    """UTF-16, as hexadecimal digits; a half of a pair that stands alone is U+FFFD."""
    return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace").encode("utf-16-be").hex().upper()
