"""`taskctl tasks edit`: by flags and words of quick entry, or in an editor, merging what others change."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from taskctl.cli import clock, output, sheet
from taskctl.cli.add import DueOption, EveryOption, PriorityOption, ProjectOption, as_words, one_line
from taskctl.cli.offline import desk
from taskctl.cli.output import Json, Ndjson, Quiet
from taskctl.cli.selection import IfVersion, change_each, references
from taskctl.errors import (
    LocalError,
    ServerUnreachable,
    TaskctlError,
    UsageInvalid,
    ValidationFailed,
    VersionConflict,
)

if TYPE_CHECKING:
    from taskctl.cli.sheet import Sheet
    from taskctl.client import ChangesDict, TaskDict
    from taskctl.desk import Desk
    from taskctl.operations import Reference
    from taskctl.outbox import Waiting

_EDITORS = ("sensible-editor", "nano", "vi")
"""Tried where neither VISUAL nor EDITOR is set."""

_TITLE = "title"
"""Stands behind words that are all fields, because a line of quick entry has a title."""

_TRIES = 5
"""How often a change that depends on the task as it is is made anew when the task changes meanwhile."""


def edit(
    context: typer.Context,
    *,
    task: Annotated[str, typer.Argument(metavar="ID", hidden=True)],
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", hidden=True)] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT")] = None,
    description: Annotated[str | None, typer.Option("--description", "-d", metavar="TEXT")] = None,
    clear_description: Annotated[
        bool, typer.Option("--clear-description", help="Leave it without a description.")
    ] = False,
    due: DueOption = None,
    every: EveryOption = None,
    priority: PriorityOption = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="TAG", help="Add it, or take it away: -t home -t -work."),
    ] = None,
    project: ProjectOption = None,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Change a task: `edit 7 due:fri +home p:high`, by flags, or in an editor.

    `none` clears a due date, a recurrence, a priority or a project. Several tasks are changed alike:
    `edit 3-5 p:low`. Without words and flags, in a terminal, VISUAL or EDITOR opens with the task as text.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    if clear_description and description is not None:
        raise UsageInvalid("--description and --clear-description exclude each other.")
    plain: ChangesDict = {}
    if title is not None:
        plain["title"] = title
    if description is not None or clear_description:
        plain["description"] = description
    line = f"{as_words(due=due, every=every, priority=priority, project=project)} {one_line(words or [])}"
    wish = _Wish(plain, line.strip(), tags or [])
    chosen = references([task], if_version)
    if wish:
        change_each(context, chosen, how, "Changed", lambda opened, one: wish.apply(opened, one, if_version))
    if len(chosen) != 1 or if_version is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageInvalid(
            "Nothing to change: give words such as due:fri, or flags; one task alone opens in an editor, "
            "in a terminal."
        )
    with desk(context) as opened:
        changed = _in_editor(opened, opened.resolved(chosen[0]))
        if changed is not None:
            output.print_task("Changed", changed, how, opened.client.raw)


class _Wish:
    """What words and flags ask to change.

    Args:
        plain: members that are sent as they are.
        line: words of quick entry.
        tags: to be added, or taken away where they begin with a minus sign.
    """

    def __init__(self, plain: "ChangesDict", line: str, tags: list[str]) -> None:
        self._now, self._zone = clock.here()
        self._plain, self._line = plain, line
        fields = self._read("")
        self._removed = {tag[1:].lower() for tag in tags if tag.startswith("-")}
        self._added = [tag.removeprefix("+") for tag in tags if not tag.startswith("-")]
        self._added += fields.pop("tags", [])
        self._fields = fields
        # A recurrence begins at the due date, and tags are added to those that are there.
        self._needs_due = fields.get("recurrence") is not None and not self._says_due()
        self._needs_task = bool(self._needs_due or self._removed or self._added)

    def __bool__(self) -> bool:
        return bool(self._plain or self._fields or self._removed or self._added)

    def apply(self, opened: "Desk", one: "Reference", if_version: int | None) -> "TaskDict | Waiting":
        """Change one task; what depends on the task as it is is worked out anew where that changes."""
        if not self._needs_task:
            return opened.edit_task(one, self._changes(None), if_version=if_version)
        for left in reversed(range(_TRIES)):
            task = self._task(opened, one)
            version = task["version"] if if_version is None else if_version
            try:
                return opened.edit_task(one, self._changes(task), if_version=version, before=task)
            except VersionConflict:
                if if_version is not None or not left:
                    raise
        raise AssertionError  # pragma: no cover - the last try returns or raises

    @staticmethod
    def _task(opened: "Desk", one: "Reference") -> "TaskDict":
        """The task as it is, which only the server knows; once it is away, it is not waited for again."""
        if opened.away is None:
            try:
                return opened.client.read_task(opened.resolved(one))
            except TaskctlError as error:
                from taskctl.outbox import is_away

                if not is_away(error):
                    raise
                opened.away = error
        raise ServerUnreachable(
            f"{opened.away.detail} Nothing is kept: tags, and every: without due:, depend on the task."
        )

    def _changes(self, task: "TaskDict | None") -> "ChangesDict":
        fields = dict(self._fields)
        if task is not None and self._needs_due and task.get("due_at"):
            text = sheet.of(task, self._zone)["due"]
            fields = self._read(f'due:"{text}" ')
            del fields["due_at"]
            fields.pop("tags", None)
        if task is not None and (self._added or self._removed):
            kept = [tag for tag in task.get("tags") or () if tag not in self._removed]
            fields["tags"] = list(dict.fromkeys([*kept, *self._added]))
        return cast("ChangesDict", {**self._plain, **fields})

    def _read(self, before: str) -> dict[str, Any]:
        """The fields that the words name."""
        from taskctl import entry

        found = entry.read(f"{before}{self._line} {_TITLE}", self._now, self._zone)
        if found.title != _TITLE:
            text = found.title.removesuffix(_TITLE).strip()
            raise UsageInvalid(f"{text[:40]!r} is no field; a new title goes after --title.")
        return dict(found.fields)

    def _says_due(self) -> bool:
        """Whether the words name a due date; where they only recur, the fields have the first one."""
        return re.search(r"(?i)(^|\s)due:", self._line) is not None


def _in_editor(opened: "Desk", number: int) -> "TaskDict | Waiting | None":
    """Let a person edit a task as text until it is stored; None where there was nothing to change.

    Of what others change meanwhile nothing is lost: fields that one side has changed are merged, and where
    both have changed one, the editor opens again with both.
    """
    now, zone = clock.here()
    task = opened.client.read_task(number)
    base = sheet.of(task, zone)
    file = Path(mkdtemp(prefix="taskctl-")) / f"task-{number}.txt"  # in a folder that is its owner's alone
    untouched = sheet.write(base, _remarks(task))
    try:
        mine = _edited(file, untouched)
        after: Sheet | None = None
        while True:
            try:
                after = sheet.read(mine)
                changes = sheet.changes(base, after, task, now, zone) if after else {}
                if not changes:
                    typer.echo("Nothing is changed.", err=True)
                    shutil.rmtree(file.parent)
                    return None
                changed = opened.edit_task(number, changes, if_version=task["version"], before=task)
            except VersionConflict:
                task = opened.client.read_task(number)
                theirs = sheet.of(task, zone)
                merged, both = sheet.merge(base, cast("Sheet", after), theirs)
                mine = sheet.write(merged, [*_remarks(task), *_both_changed(both, theirs)])
                base = theirs
                if both:
                    typer.echo(f"Meanwhile somebody else has changed {' and '.join(both)} too.", err=True)
                    _ask_again(file)
                    mine = _edited(file, mine)
            except (UsageInvalid, ValidationFailed) as error:
                output.report(error, as_json=False)
                _ask_again(file)
                mine = _edited(file, mine)
            else:
                shutil.rmtree(file.parent)
                return changed
    except (TaskctlError, typer.Abort, KeyboardInterrupt):
        _leave(file, untouched)
        raise


def _leave(file: Path, untouched: str) -> None:
    """Say where a person's text is, also where the editor has given it another name; without one, tidy up."""
    texts = [
        each for each in file.parent.iterdir() if each != file or each.read_bytes() != untouched.encode()
    ]
    for text in [file] if file in texts else texts:
        typer.echo(f"Your text is in {text}", err=True)
    if not texts:
        shutil.rmtree(file.parent)


def _ask_again(file: Path) -> None:
    if not typer.confirm("Edit again?", default=True, err=True):
        raise LocalError(f"Nothing is changed in task {file.stem.removeprefix('task-')}.")


def _remarks(task: "TaskDict") -> list[str]:
    from taskctl import recurrence

    remarks = [f"Task {task['id']}. Lines that begin with # mean nothing; an empty file changes nothing."]
    if rule := task.get("recurrence"):
        with suppress(ValueError):
            remarks.append(f"It repeats {recurrence.words(rule)}.")
    return remarks


def _both_changed(fields: list[str], theirs: "Sheet") -> list[str]:
    """What stands above the fields that both sides have changed: what the others have there."""
    shown = []
    for name in fields:
        text = theirs[name] or "(empty)"
        shown.append(f"{name} is now, on the server:\n" + "\n".join(f"  {line}" for line in text.split("\n")))
    return shown


def _edited(file: Path, text: str) -> str:
    """What a person makes of a text, in the editor of their choice.

    Raises:
        UsageInvalid: there is no editor.
        LocalError: it did not run, or ended as if nothing should happen.
    """
    file.write_text(text, encoding="utf-8")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), "")
    if not editor:
        raise LocalError("There is no editor; name one in VISUAL or EDITOR.")
    try:
        code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode  # noqa: S603 - the user's
    except (OSError, ValueError) as error:  # ValueError: quotes that are not closed
        raise LocalError(f"The editor {editor!r} cannot be used: {error}.") from None
    if code:
        raise LocalError(f"The editor {editor!r} ended with {code}; nothing is changed.")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LocalError(f"The editor {editor!r} has left no {file.name}; nothing is changed.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"What the editor {editor!r} has left cannot be read: {error}.") from None
