"""The elements of a JSON array, or of a sequence of JSON objects, one after the other as they are read."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from taskctl.formats.lines import LONGEST
from taskctl.formats.record import Refused
from taskctl.strict_json import loads

_CHUNK = 2**16
_MARK = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|["\[\]{},\n]')
_IN_STRING = re.compile(r'[^"\\\n]*(?:\\.[^"\\\n]*)*')
_SPACE = " \t\r\n,"


def elements(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    """The objects with the lines where they start; what is none is refused, and reading goes on behind it."""
    scanner = _Scanner()
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    ended = False
    first = True
    while not ended:
        chunk = stream.read(_CHUNK)
        ended = not chunk
        if first and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield 1, Refused(1, "the file is in UTF-16; save it as UTF-8")
            return
        text = decoder.decode(chunk, final=ended)
        for line, found in scanner.feed(text.removeprefix("\ufeff") if first else text, ended=ended):
            yield line, _parsed(line, found)
        first = False


class _Scanner:
    """Finds where elements begin and end by brackets alone, so that one that is broken spoils no other."""

    def __init__(self) -> None:
        self._text = ""
        self._scan = 0  # how far the brackets are counted
        self._begin = 0  # where what belongs to no element yet starts
        self._line = self._begin_line = 1
        self._depth = 0
        self._base: int | None = None  # the depth of elements: 1 in an array
        self._string = self._too_long = self._done = False

    def feed(self, text: str, *, ended: bool) -> Iterator[tuple[int, str | Refused]]:
        """The texts of the elements that this piece of the file completes."""
        self._text = self._text[self._begin :] + text
        self._scan -= self._begin
        self._begin = 0
        while not self._in_string() and (found := _MARK.search(self._text, self._scan)):
            mark = found[0]
            self._scan = found.end()
            if mark == '"':
                self._string = True
            elif mark == "\n":
                self._line += 1
            elif mark in "[]{},":
                yield from self._bracket(mark)
        if not self._string:
            self._scan = len(self._text)
        if len(self._text) - self._begin > LONGEST:
            self._too_long = True
            self._begin = self._scan
        if ended:
            yield from self._end()

    def _in_string(self) -> bool:
        """Whether what comes next is in a string; goes to its end, which a raw line's end is too."""
        if self._string:
            self._scan = _IN_STRING.match(self._text, self._scan).end()  # type: ignore[union-attr]
            closing = self._text[self._scan : self._scan + 1]
            self._string = closing not in {'"', "\n"}
            self._scan += closing == '"'
        return self._string

    def _bracket(self, mark: str) -> Iterator[tuple[int, str | Refused]]:
        if self._base is None and mark in "[{" and not self._text[self._begin : self._scan - 1].strip(_SPACE):
            self._base = 1 if mark == "[" else 0
            if mark == "[":
                self._depth = 1
                self._start()
                return
        base = self._base or 0
        if mark in "[{":
            self._depth += 1
        elif mark in "]}":
            self._depth -= 1
            if self._depth == base:
                yield from self._complete(self._scan)
            elif self._depth < base:
                yield from self._complete(self._scan - 1)
                self._depth, self._base, self._done = 0, 0, True
                self._start()
        elif self._depth == base:
            yield from self._complete(self._scan - 1)
            self._start()

    def _start(self) -> None:
        self._begin, self._begin_line = self._scan, self._line

    def _complete(self, end: int) -> Iterator[tuple[int, str | Refused]]:
        piece = self._text[self._begin : end]
        before = piece[: len(piece) - len(piece.lstrip(_SPACE))]
        line = self._begin_line + before.count("\n")
        if self._too_long:
            yield line, Refused(line, f"longer than {LONGEST:,} characters")
        elif piece.strip(_SPACE):
            late = Refused(line, "it stands behind the end of the array")
            yield line, late if self._done else piece.strip(_SPACE)
        self._too_long = False
        self._start()

    def _end(self) -> Iterator[tuple[int, str | Refused]]:
        open_still = self._depth > 0
        for line, piece in self._complete(len(self._text)):
            if open_still and isinstance(piece, str):
                yield (
                    line,
                    Refused(line, "the file ends before this does; a bracket or a quote is not closed"),
                )
            else:
                yield line, piece
        if open_still and self._base == 1 and self._depth == 1:
            yield self._line, Refused(self._line, "the array is not closed: the file seems to be cut off")


def _parsed(line: int, text: str | Refused) -> dict[str, Any] | Refused:
    if isinstance(text, Refused):
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        try:
            text = _joined(text)
        except UnicodeDecodeError:
            byte = ord(text[error.start]) & 0xFF
            return Refused(line, f"not UTF-8: byte 0x{byte:02x} at character {error.start + 1}")
    try:
        value = loads(text)
    except json.JSONDecodeError as error:
        return Refused(line, f"not JSON: {error.msg} at character {error.pos + 1}")
    except ValueError as error:
        return Refused(line, f"not JSON: {error}")
    return value if isinstance(value, dict) else Refused(line, "not a JSON object")


def _joined(text: str) -> str:
    """Make one character of two halves: Taskwarrior 2 writes so (CESU-8) what it was given as JSON escapes.

    Raises:
        UnicodeDecodeError: some bytes are no text in that way either.
    """
    halves = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")
    return halves.encode("utf-16", "surrogatepass").decode("utf-16")
