"""A stream of bytes as lines of text, whatever the bytes are."""

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from typing import BinaryIO

from taskctl.formats.record import Refused

LONGEST = 2**20
"""Bytes in a line, or in an element of a JSON array; no task that the API takes is as long."""


def lines(stream: BinaryIO) -> Iterator[tuple[int, str | Refused]]:
    """The lines with their ends and their numbers from 1; what is no text of bearable length is refused.

    A byte order mark is taken off. Of a file in UTF-16 the first line is refused, and no more is read.
    """
    for number, line in raw_lines(stream):
        yield number, line if isinstance(line, Refused) else decoded(number, line)


def raw_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | Refused]]:
    """The same with their bytes, for formats whose lines may break within a character."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if number == 1:
            if line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                yield 1, Refused(1, "the file is in UTF-16; save it as UTF-8")
                return
            line = line.removeprefix(BOM_UTF8)
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
            yield number, Refused(number, f"longer than {LONGEST:,} bytes")
            continue
        yield number, line


def decoded(number: int, line: bytes) -> str | Refused:
    """Bytes as text."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Refused(number, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")
    return Refused(number, "it holds a NUL, so it is no text") if "\0" in text else text
