"""Rows of numbers that only grow, in memory and in files that several workers read."""

from pathlib import Path

import pytest

from taskctl.server.tallies import ROOM, Tallies


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "file"])
def test_rows_are_kept_apart(tmp_path: Path, shared: bool) -> None:
    """Each key has a row of its own and always the same, also beyond what a file's first piece takes."""
    tallies = Tallies(tmp_path if shared else None)
    for turn in (1, 2):
        for number in range(300):
            tallies.row(("metric", f"label {number} é\n"))[number % ROOM] += turn * number
    totals = tallies.totals()
    assert len(totals) == 300
    for number in range(300):
        expected = [3.0 * number if place == number % ROOM else 0.0 for place in range(ROOM)]
        assert totals["metric", f"label {number} é\n"] == expected


def test_workers_are_added_up(tmp_path: Path) -> None:
    """Any worker tells the sum of all, also of one that has ended, whatever order they met the keys in."""
    first, second, ended = Tallies(tmp_path), Tallies(tmp_path), Tallies(tmp_path)
    first.row(("a",))[0] += 1
    second.row(("b",))[ROOM - 1] += 0.5
    second.row(("a",))[0] += 10
    ended.row(("a",))[0] += 100
    del ended
    for each in (first, second):
        assert each.totals() == {
            ("a",): [111.0, *[0.0] * (ROOM - 1)],
            ("b",): [*[0.0] * (ROOM - 1), 0.5],
        }


def test_a_key_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """A worker that is killed while it begins a row spoils nothing for those that read its file."""
    tallies = Tallies(tmp_path)
    tallies.row(("whole",))[0] += 1
    tallies.row(("torn",))[0] += 1
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(b'["torn"')] = 0
    file.write_bytes(content)
    assert list(Tallies(tmp_path).totals()) == [("whole",)]


def test_a_key_has_to_fit(tmp_path: Path) -> None:
    """A key that is longer than its place is refused, and the row after it is none the worse."""
    tallies = Tallies(tmp_path)
    with pytest.raises(ValueError, match="longer than"):
        tallies.row(("x" * 400,))
    tallies.row(("short",))[0] += 1
    assert list(tallies.totals()) == [("short",)]
