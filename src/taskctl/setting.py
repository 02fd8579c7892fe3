"""What a setting is: how it is declared and read, and what is said of a wrong one."""

import io
import os
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError

from taskctl.errors import SettingsInvalid
from taskctl.quantities import seconds, size

OURS = ("TASKCTL_", "BETTER_AUTH_")
"""What the names of settings begin with, but for DATABASE_URL."""

CLIENT_VARIABLES = frozenset(
    f"TASKCTL_{name}" for name in ("ALLOW_HTTP", "CONFIG_DIR", "CONTEXT", "SERVER", "TIMEOUT", "TOKEN")
)
"""What `taskctl.contexts` reads; no setting of the server."""


class LogFormat(StrEnum):
    """How log events are written."""

    console = "console"
    json = "json"


class LogLevel(StrEnum):
    """The least important event that is written."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class PreparedStatements(StrEnum):
    """Whether statements are prepared once per connection."""

    auto = "auto"
    on = "on"
    off = "off"


class Metrics(StrEnum):
    """Who may read `/metrics`."""

    off = "off"
    open = "open"
    token = "token"  # noqa: S105 - a word


class OnError(StrEnum):
    """What the limiter does while its storage cannot be reached."""

    memory = "memory"
    allow = "allow"
    deny = "deny"


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


def read_env_file(path: Path | None) -> dict[str, str]:
    """The variables in a `.env` file; none where there is no such file.

    Raises:
        SettingsInvalid: it cannot be read, or a line is not NAME=VALUE.
    """
    try:
        if path is None or not path.is_file():  # a directory may be a virtual environment
            return {}
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsInvalid(f"{path} cannot be read: {reason}") from error
    from dotenv.parser import parse_stream  # noqa: PLC0415 - most deployments have no such file

    # The parser and not dotenv_values: that passes over a line it cannot read, and replaces `$NAME`.
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(text)):
        if line.error:
            raise SettingsInvalid(f"{path}, line {line.original.line}: this is not NAME=VALUE")
        if line.key is not None and line.value is not None:
            values[line.key] = line.value
    return values


def explain(settings: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence a variable: its name, what is wrong, what would be right. Never its value."""
    expected = {
        str(field.alias): str(field.json_schema_extra["expects"])
        for field in settings.model_fields.values()
        if isinstance(field.json_schema_extra, dict)
    }
    sentences = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(problem["loc"][0])
        if name in settings.model_fields:  # a default that is wrong goes by the field's name
            name = str(settings.model_fields[name].alias)
        reason = problem["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        sentences.append(f"{name} is wrong ({reason}): it takes {expected.get(name, 'another value')}")
    return sentences


def default_data_dir() -> Path:
    """The platform's data directory for taskctl (XDG on Linux)."""
    from platformdirs import user_data_path  # noqa: PLC0415 - not needed where the setting is given

    try:
        return user_data_path("taskctl", appauthor=False)
    except RuntimeError:  # an account without a home, as in a container: only using it is an error
        return Path(os.devnull, "taskctl")
