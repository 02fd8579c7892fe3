"""Numbers that only grow: one process has them in memory, several workers in files that each can read.

A request adds to half a dozen of them, so that adding has to cost next to nothing: it is one step on an array
of doubles. Nobody locks anything, as each worker writes to a file of its own, and only its event loop does.
"""

import json
import mmap
import os
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import cast

Key = tuple[str, ...]
Row = MutableSequence[float]

ROOM = 16
"""How many numbers a row has."""

_PREFIX = "tallies-"
_NAME_BYTES, _DOUBLE_BYTES = 384, 8
_RECORD = _NAME_BYTES + ROOM * _DOUBLE_BYTES
_PIECE = mmap.ALLOCATIONGRANULARITY
"""What a file grows by at once; each piece is mapped by itself."""

_RECORDS = _PIECE // _RECORD


class Tallies:
    """Rows of `ROOM` numbers that begin with 0, each under a key.

    A file consists of records: the key as JSON, filled up with NUL, and the numbers. It stays when its worker
    ends, so that what was counted is not lost.

    Args:
        directory: where the workers of one `serve` have their files; None where there is one process.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._rows: dict[Key, Row] = {}
        if directory is not None:
            number, name = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
            os.close(number)
            self._path = Path(name)

    def row(self, key: Key) -> Row:
        """The numbers under a key, to add to; the same each time.

        Raises:
            ValueError: the key is too long.
        """
        row = self._rows.get(key)
        if row is None:
            row = array("d", bytes(ROOM * _DOUBLE_BYTES)) if self._directory is None else self._record(key)
            self._rows[key] = row
        return row

    def totals(self) -> dict[Key, list[float]]:
        """All rows, each the sum of all workers' rows under its key."""
        if self._directory is None:
            return {key: list(row) for key, row in list(self._rows.items())}
        totals: dict[Key, list[float]] = defaultdict(lambda: [0.0] * ROOM)
        for file in sorted(self._directory.glob(f"{_PREFIX}*")):
            for key, row in _records(file.read_bytes()):
                totals[key] = [sum(pair) for pair in zip(totals[key], row, strict=True)]
        return dict(totals)

    def _record(self, key: Key) -> Row:
        name = json.dumps(key).encode()
        if len(name) > _NAME_BYTES:
            raise ValueError(f"{name!r} is longer than {_NAME_BYTES} bytes")
        piece, place = divmod(len(self._rows), _RECORDS)
        if place == 0:
            offset = piece * _PIECE
            with self._path.open("r+b") as file:
                file.truncate(offset + _PIECE)
                self._map = mmap.mmap(file.fileno(), _PIECE, offset=offset)
        start = place * _RECORD
        # Whoever reads at this moment takes a record that begins with NUL for the end.
        self._map[start + 1 : start + len(name)] = name[1:]
        self._map[start] = name[0]
        # The row keeps its piece mapped.
        return cast("Row", memoryview(self._map)[start + _NAME_BYTES : start + _RECORD].cast("d"))


def _records(content: bytes) -> Iterator[tuple[Key, Row]]:
    for piece in range(0, len(content), _PIECE):
        for start in range(piece, piece + _RECORDS * _RECORD, _RECORD):
            name = content[start : start + _NAME_BYTES].rstrip(b"\0")
            if not name.startswith(b"["):
                return
            row = array("d", content[start + _NAME_BYTES : start + _RECORD])
            yield tuple(json.loads(name)), row
