"""The symbols of a shared library, without a process of nm for each library that is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Of ELF64 files, little-endian (Tool Interface Standard: Executable and Linking Format, part 1).
_FILE = np.dtype([("", "V40"), ("sections", "<u8"), ("", "V12"), ("count", "<u2"), ("", "V2")])
_SECTION = np.dtype(
    [
        *[("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8")],
        *[("offset", "<u8"), ("size", "<u8"), ("link", "<u4"), ("", "V20")],
    ]
)
_SYMBOL = np.dtype(
    [
        *[("name", "<u4"), ("info", "u1"), ("", "V1"), ("section", "<u2")],
        *[("value", "<u8"), ("size", "<u8")],
    ]
)
_SYMBOL_TABLE, _WRITABLE, _OBJECT = 2, 1, 1


def variables(library: Path) -> list[tuple[int, int, str]]:
    """(offset, bytes, mangled name) of each variable that can be written, by name."""
    data = library.read_bytes()
    head = np.frombuffer(data, _FILE, 1)[0]
    sections = np.frombuffer(data, _SECTION, head["count"], head["sections"])
    found = []
    for table in sections[sections["type"] == _SYMBOL_TABLE]:
        count = int(table["size"]) // _SYMBOL.itemsize
        symbols = np.frombuffer(data, _SYMBOL, count, table["offset"])
        symbols = symbols[(symbols["info"] & 15) == _OBJECT]
        symbols = symbols[symbols["section"] < len(sections)]  # others are special numbers
        symbols = symbols[(sections["flags"][symbols["section"]] & _WRITABLE) > 0]
        texts = int(sections[table["link"]]["offset"])
        for symbol in symbols:
            start = texts + int(symbol["name"])
            name = data[start : data.index(b"\0", start)].decode()
            found.append((int(symbol["value"]), int(symbol["size"]), name))
    return sorted(found, key=lambda variable: variable[2])
