"""What a setting is: how it is declared, and how its text is read into a value."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr

from taskctl.quantities import seconds, size

_RATE_LIMIT = re.compile(
    r"[1-9][0-9]{0,8}\s*(?:/|per)\s*(?:[1-9][0-9]{0,3}\s*)?(?:second|minute|hour|day|month|year)s?",
    re.IGNORECASE,
)


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def lower(text: str) -> str:
    """A word in lower case, without the white space around it."""
    return text.strip().lower()


def _on_or_off(text: str) -> bool:
    word = lower(text)
    if word in {"on", "true", "yes", "1"}:
        return True
    if word in {"off", "false", "no", "0"}:
        return False
    raise ValueError("neither on nor off")


def _rate_limits(text: str) -> str:
    """Limits as the `limits` library reads them; it is not asked, as importing it takes its time."""
    for limit in re.split("[,;|]", text) if text.strip() else ():
        if not _RATE_LIMIT.fullmatch(limit.strip()):
            raise ValueError("not a number of requests per second, minute, hour or day")
    return text.strip()


def read(reader: Callable[[str], object]) -> BeforeValidator:
    """Let `reader` turn a text into a value; what is no text, as a default, is one already."""
    return BeforeValidator(lambda value: reader(value) if isinstance(value, str) else value)


Seconds = Annotated[float, read(seconds)]
Bytes = Annotated[int, read(size)]
Names = Annotated[tuple[str, ...], read(_comma_separated)]
Secrets = Annotated[tuple[SecretStr, ...], read(_comma_separated)]
Switch = Annotated[bool, read(_on_or_off)]
RateLimits = Annotated[str, read(_rate_limits)]


def setting(
    name: str,
    default: Any,
    *,
    expects: str,
    description: str,
    shown: str | None = None,
    within: tuple[float, float] | tuple[None, None] = (None, None),
    may_be_empty: bool = False,
) -> Any:
    """Declare a setting: its environment variable, what it expects and how its default reads.

    `may_be_empty` is for settings where an empty value says something; elsewhere it counts as not set.
    """
    return Field(
        default,
        alias=name,
        description=description,
        ge=within[0],
        le=within[1],
        json_schema_extra={
            "expects": expects,
            "shown": shown or ("none" if default in (None, ()) else str(default)),
            "may_be_empty": may_be_empty,
        },
    )
