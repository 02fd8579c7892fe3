"""Which tasks a command is about: ids, ranges of ids, and `-` for those on stdin; and trying each of them."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from taskctl.cli import output
from taskctl.cli.output import Form
from taskctl.errors import TaskctlError, UsageInvalid
from taskctl.vocabulary import TASK_ID_MAX

STDIN = "-"

RANGE_MAX = 1000
"""Tasks that one range may name: more is more likely a slip than a wish."""

Ids = Annotated[list[str], typer.Argument(metavar="ID", hidden=True)]
Id = Annotated[str, typer.Argument(metavar="ID", hidden=True)]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=1, metavar="N", help="Only if this is the task's version."),
]


def task_id(text: str) -> int:
    """A task's id; UsageInvalid where a text is none."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(TASK_ID_MAX)) else 0
    if not 1 <= number <= TASK_ID_MAX:
        raise UsageInvalid(f"{text[:40]!r} is no task's id: ids are whole numbers from 1.")
    return number


def task_ids(texts: list[str], if_version: int | None = None) -> list[int]:
    """The ids that words name, in their order: `8`, `3-5`, and `-` for those on stdin.

    Raises:
        UsageInvalid: a word names no tasks, or `if_version` does not go with as many.
    """
    numbers = [number for text in texts for number in _named(text)]
    if if_version is not None and len(numbers) > 1:
        raise UsageInvalid("--if-version goes with one id only.")
    return numbers


def _named(text: str) -> Iterator[int]:
    if text == STDIN:
        for line in stdin_lines():
            # A list's line begins with the id; a line without tabs may have several.
            for word in line.split("\t")[:1] if "\t" in line else line.split():
                yield from _span(word)
    else:
        yield from _span(text)


def stdin_lines() -> list[str]:
    """The lines of stdin that are not empty.

    Raises:
        UsageInvalid: they are not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig") if sys.stdin else ""
    except UnicodeDecodeError:
        raise UsageInvalid("What stdin holds is not text in UTF-8.") from None
    return [line for line in re.split(r"\r?\n", text) if line.strip()]


def _span(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    if not dash:
        return [task_id(text)]
    begin, end = task_id(first), task_id(last)
    if not begin <= end < begin + RANGE_MAX:
        raise UsageInvalid(f"{text!r} is no range of at most {RANGE_MAX} ids, such as 3-5.")
    return list(range(begin, end + 1))


def each(numbers: list[int], do: Callable[[int], None], how: Form) -> int:
    """Try each, report each failure, and return the exit code of the first; a single one just raises."""
    if len(numbers) == 1:
        do(numbers[0])
        return 0
    code = 0
    with output.progress(len(numbers), streaming=how is not Form.JSON) as progress:
        for number in numbers:
            try:
                do(number)
            except TaskctlError as error:
                output.report(error, as_json=how in {Form.JSON, Form.NDJSON}, task_id=number)
                code = code or error.exit_code
            progress.advance()
    return code
