"""Which tasks a command is about: ids, ranges of ids, and `-` for those on stdin; and trying each of them."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from taskctl.cli import output
from taskctl.cli.offline import desk, kept_json
from taskctl.cli.output import Form
from taskctl.errors import TaskctlError, UsageInvalid
from taskctl.operations import is_new
from taskctl.vocabulary import TASK_ID_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from taskctl.client import TaskDict
    from taskctl.desk import Desk
    from taskctl.operations import Reference
    from taskctl.outbox import Waiting

STDIN = "-"

RANGE_MAX = 1000
"""Tasks that one range may name: more is more likely a slip than a wish."""

Ids = Annotated[list[str], typer.Argument(metavar="ID", hidden=True)]
Id = Annotated[str, typer.Argument(metavar="ID", hidden=True)]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=1, metavar="N", help="Only if this is the task's version."),
]


def reference(text: str) -> "Reference":
    """A task's id, or what stands for one that is still to be made; UsageInvalid for any other text."""
    if is_new(text):
        return text
    return _task_id(text)


def _task_id(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(TASK_ID_MAX)) else 0
    if not 1 <= number <= TASK_ID_MAX:
        raise UsageInvalid(f"{text[:40]!r} is no task's id: ids are whole numbers from 1.")
    return number


def references(texts: list[str], if_version: int | None = None) -> "list[Reference]":
    """The tasks that words name, in their order: `8`, `3-5,8`, and `-` for those on stdin.

    Raises:
        UsageInvalid: a word names no tasks, or `if_version` does not go with as many.
    """
    found = [each for text in texts for each in _named(text)]
    if if_version is not None and len(found) > 1:
        raise UsageInvalid("--if-version goes with one id only.")
    return found


def _named(text: str) -> "Iterator[Reference]":
    if text == STDIN:
        for _, line in stdin_lines():
            # A list's line begins with the id; a line without tabs may have several.
            for word in line.split("\t")[:1] if "\t" in line else line.split():
                yield from _spans(word)
    else:
        yield from _spans(text)


def stdin_lines() -> list[tuple[int, str]]:
    """The lines of stdin that are not empty, each with its number from 1.

    Raises:
        UsageInvalid: they are not UTF-8.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig") if sys.stdin else ""
    except UnicodeDecodeError:
        raise UsageInvalid("What stdin holds is not text in UTF-8.") from None
    return [(number, line) for number, line in enumerate(re.split(r"\r?\n", text), 1) if line.strip()]


def _spans(text: str) -> "Iterator[Reference]":
    for word in filter(None, text.split(",")) if text.strip(",") else [text]:
        yield from _span(word)


def _span(text: str) -> "Sequence[Reference]":
    first, dash, last = text.partition("-")
    if not dash:
        return [reference(text)]
    if not (first and last):
        raise UsageInvalid(f"{text!r} is no range: it names its first and its last id, such as 3-5.")
    begin, end = _task_id(first), _task_id(last)
    if not begin <= end < begin + RANGE_MAX:
        raise UsageInvalid(f"{text!r} is no range of at most {RANGE_MAX} ids, such as 3-5.")
    return range(begin, end + 1)


def each(references: "list[Reference]", do: "Callable[[Reference], None]", how: Form) -> int:
    """Try each, report each failure, and return the exit code of the first; a single one just raises."""
    if len(references) == 1:
        do(references[0])
        return 0
    code = 0
    with output.progress(len(references), streaming=how is not Form.JSON) as progress:
        for number in references:
            try:
                do(number)
            except TaskctlError as error:
                output.report(error, as_json=how in {Form.JSON, Form.NDJSON}, task_id=number)
                code = code or error.exit_code
            progress.advance()
    return code


def change_each(
    context: typer.Context,
    references: "list[Reference]",
    how: Form,
    verb: str,
    do: "Callable[[Desk, Reference], TaskDict | Waiting]",
) -> NoReturn:
    """Do the same to each task, print each or, as JSON, all of several together, and exit."""
    together = how is Form.JSON and len(references) != 1
    gathered: list[Mapping[str, Any]] = []
    with desk(context) as opened:

        def change(one: "Reference") -> None:
            task = do(opened, one)
            if together:
                gathered.append(task if isinstance(task, dict) else kept_json(task))
            else:
                output.print_task(verb, task, how, opened.client.raw)

        code = each(references, change, how)
    if together:
        output.print_json(output.compact(gathered))
    raise typer.Exit(code)
