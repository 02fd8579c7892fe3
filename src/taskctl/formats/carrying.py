"""How a format carries what it has no place for, so that nothing is lost on the way out and back.

What reading would give other than what was written travels along, whole, in a place that the format leaves
to programs. It counts at reading as long as the part that the format does show has not been changed since.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

Content = dict[str, Any]
Reading = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What the format makes of a content when it is written and read without anything carried."""


def to_carry(content: Mapping[str, Any], shown: Mapping[str, Any]) -> Content:
    """The members, of `extra` its own, that are not what the format shows."""
    rest = {name: content[name] for name in shown if name != "extra" and content.get(name) != shown[name]}
    extra, there = content.get("extra") or {}, shown.get("extra") or {}
    members = {name: extra[name] for name in extra if name not in there or extra[name] != there[name]}
    return {**rest, "extra": members} if members else rest


def only_history(rest: Mapping[str, Any]) -> bool:
    """Whether nothing travels along but where the task was, and when it was made and changed."""
    return rest.keys() == {"extra"} and rest["extra"].keys() == {"taskctl"}


def parsed(text: Any) -> Content:
    """What travels along, from its JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        rest = json.loads(text)
    except (TypeError, RecursionError) as error:
        raise ValueError("no JSON") from error
    if not isinstance(rest, dict):
        raise ValueError("no object")  # noqa: TRY004 - one reason like the others
    return rest


def with_carried(shown: Mapping[str, Any], rest: Mapping[str, Any], reading: Reading) -> Content:
    """What was written, with what was changed in the file since."""
    wanted = {**shown, **{name: rest[name] for name in shown if name in rest}}
    if "extra" in rest and isinstance(rest["extra"], dict):
        wanted["extra"] = {**(shown.get("extra") or {}), **rest["extra"]}
    again = reading(wanted)
    changed = [name for name in rest if name != "extra" and name in shown and again[name] != shown[name]]
    return {**wanted, **{name: shown[name] for name in changed}}
