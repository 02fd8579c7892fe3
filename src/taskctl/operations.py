"""A change of a task as data, in the shape that the API's bulk request has. Standard library only.

So a change can be made now, be kept for later, or be written down as what takes another one back:

    {"op": "create", "task": {"title": …, …}, "key": …}
    {"op": "patch", "id": 5, "changes": {…}, "if_version": 3}
    {"op": "complete", "id": 5, "completed": true, "if_version": 3}
    {"op": "delete", "id": 5, "if_version": 3}
    {"op": "restore", "id": 5}

`if_version` may be left out. Where a change is kept, `id` may also be the `Reference` to a task that is not
there yet.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from taskctl.client import Client, ContentDict, TaskDict

Reference = int | str
"""A task: its id, or `new3` for the one that the kept change number 3 is going to make."""

Operation = Mapping[str, Any]

_NEW = re.compile(r"new([1-9][0-9]{0,8})")


def reference_to(number: int) -> str:
    """How a task is called that the kept change `number` is going to make."""
    return f"new{number}"


def is_new(reference: Reference) -> bool:
    """Whether it names a task by the change that makes it."""
    return isinstance(reference, str) and _NEW.fullmatch(reference) is not None


def perform(client: "Client", operation: Operation) -> "TaskDict | None":
    """Make a change now; None for one that leaves no task. Raises what the client's method does."""
    kind, version = operation["op"], operation.get("if_version")
    task: TaskDict | None = None
    if kind == "create":
        content = dict(operation["task"])
        title = content.pop("title")
        task = client.create_task(
            title, content=cast("ContentDict", content), idempotency_key=operation["key"]
        )
    elif kind == "patch":
        task = client.edit_task(operation["id"], operation["changes"], if_version=version)
    elif kind == "complete":
        task = client.complete_task(operation["id"], completed=operation["completed"], if_version=version)
    elif kind == "restore":
        task = client.restore_task(operation["id"], if_version=version)
    else:
        client.delete_task(operation["id"], if_version=version)
    return task


def wanted(operation: Operation) -> Mapping[str, Any]:
    """The members that a change gives a task, and their values."""
    if operation["op"] == "complete":
        return {"completed": operation["completed"]}
    changes: Mapping[str, Any] = operation["task" if operation["op"] == "create" else "changes"]
    return changes


def is_so(operation: Operation, task: "TaskDict") -> bool:
    """Whether a task that exists is as the change would make it."""
    if operation["op"] == "delete":
        return False
    members: Mapping[str, Any] = task
    return all(name in members and members[name] == value for name, value in wanted(operation).items())


def verb(operation: Operation) -> str:
    """The command that makes such a change."""
    if operation["op"] == "complete":
        return "done" if operation["completed"] else "reopen"
    return {"create": "add", "patch": "edit", "delete": "rm", "restore": "restore"}[operation["op"]]


def now() -> str:
    """This moment by this machine's clock, as the API writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def check(operation: Operation) -> None:
    """Raise ValueError, TypeError or KeyError where something is no change of those that can be kept."""
    kind, version = operation["op"], operation.get("if_version")
    if kind == "create":
        good = isinstance(operation["task"]["title"], str) and isinstance(operation["key"], str)
    else:
        good = isinstance(operation["id"], int) or is_new(operation["id"])
        good = good and isinstance(version, int | None)
        if kind == "patch":
            good = good and isinstance(operation["changes"], dict)
        elif kind == "complete":
            good = good and isinstance(operation["completed"], bool)
        else:
            good = good and kind in {"delete", "restore"}
    if not good:
        raise ValueError("no change")
