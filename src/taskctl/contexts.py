"""The client's settings: which server, as whom. Standard library only.

A context is a server and a token under a name. They live in one file, `contexts.json`, that only its owner
may read; what a command uses is settled once, by `resolve`, and passed down. The classes are named tuples
because a dataclass takes seven times as long to define.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from taskctl.errors import LocalError, NotLoggedIn, SettingsInvalid
from taskctl.vocabulary import API_PREFIX

TIMEOUT_DEFAULT = 30.0
"""Seconds for one operation, its repeats included."""

TOKEN_MAX = 8 * 1024
"""Characters in a token: more than any server takes in a header."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")


class Flags(NamedTuple):
    """What the root options of a command line say; None where they say nothing."""

    server: str | None = None
    context: str | None = None
    timeout: float | None = None
    allow_http: bool = False
    debug: bool = False


class Context(NamedTuple):
    """A server, and a token for it if there is one."""

    server: str
    token: str | None = None
    allow_http: bool = False

    def __repr__(self) -> str:
        return f"Context({self.server!r})"


class Contexts(NamedTuple):
    """All that is stored: the contexts by name, and which of them is used when none is named."""

    current: str | None = None
    contexts: Mapping[str, Context] = MappingProxyType({})

    def get(self, name: str) -> Context:
        """The context called `name`.

        Raises:
            SettingsInvalid: there is none; the sentence names those that exist.
        """
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "there are none yet"
            raise SettingsInvalid(f"There is no context {name!r} (known: {known}).")
        return self.contexts[name]


class ClientSettings(NamedTuple):
    """What one command uses. `token` is None only before `login`; `timeout` is in seconds."""

    server: str
    token: str | None
    context: str | None = None
    timeout: float = TIMEOUT_DEFAULT
    allow_http: bool = False

    def __repr__(self) -> str:
        return f"ClientSettings({self.server!r}, context={self.context!r})"

    def require_token(self) -> None:
        """See to it that there is a token to send.

        Raises:
            NotLoggedIn: there is none for this server.
        """
        if self.token is None:
            raise NotLoggedIn(
                f"There is no token for {self.server}; run "
                f"`taskctl login --server {self.server} --token-stdin`, or set TASKCTL_TOKEN."
            )


def server_root(url: str, *, allow_http: bool) -> str:
    """A server's root URL in its one form: no trailing slash, no `/api/v1`.

    Raises:
        SettingsInvalid: it is no http or https URL, it carries a user name, query or fragment, or it is
            plain HTTP to another machine and `allow_http` is false.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number up to 65535
    except ValueError as error:
        raise SettingsInvalid(f"{url!r} is not a URL: {error}.") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise SettingsInvalid(f"{url!r} is not a server's URL; one looks like https://tasks.example.com.")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise SettingsInvalid("A server's URL has no user name, password, query or fragment.")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
        raise SettingsInvalid(
            f"Plain HTTP would show the token to everyone on the way to {parts.hostname}; "
            "use https, or allow it with --allow-http."
        )
    path = parts.path.rstrip("/").removesuffix(API_PREFIX).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without brackets) is this machine: RFC 6761, section 6.3."""
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL (RFC 6454): a token given for one origin goes to no other."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def checked_token(text: str, where: str) -> str:
    """A token without the white space around it.

    Raises:
        SettingsInvalid: it is empty, too long, or not all visible ASCII. The sentence names `where` it
            came from, never what it says.
    """
    token = text.strip()
    if not token:
        raise SettingsInvalid(f"There is no token in {where}.")
    if len(token) > TOKEN_MAX:
        raise SettingsInvalid(f"What is in {where} is longer than {TOKEN_MAX} characters: no token is.")
    if not _VISIBLE_ASCII.fullmatch(token):
        raise SettingsInvalid(f"What is in {where} holds white space or characters that no token has.")
    return token


def resolve(
    flags: Flags, environ: Mapping[str, str] = os.environ, *, stored: Contexts | None = None
) -> ClientSettings:
    """Settle the settings of one command: flag, environment, context, default.

    A context that `--context` names counts as a flag: it outranks TASKCTL_SERVER and TASKCTL_TOKEN. A
    context's token and its leave for plain HTTP are for that context's server only: another server gets
    neither.

    Args:
        flags: the root options.
        environ: the environment's variables.
        stored: what is in the file, where it has been read already.

    Raises:
        SettingsInvalid: no server is named anywhere, or a setting is wrong.
    """
    for option, value in (("--server", flags.server), ("--context", flags.context)):
        if value is not None and not value.strip():  # an unset variable in a script, and not "the usual one"
            raise SettingsInvalid(f"{option} is empty.")
    server = flags.server or (None if flags.context else environ.get("TASKCTL_SERVER"))
    env_token = environ.get("TASKCTL_TOKEN")
    token = checked_token(env_token, "TASKCTL_TOKEN") if env_token else None
    allow_http = flags.allow_http or environ.get("TASKCTL_ALLOW_HTTP", "") in {"1", "true"}

    context, name = None, flags.context or environ.get("TASKCTL_CONTEXT")
    if name or not (server and token):  # the file need not be well where nothing is wanted from it
        stored = load(environ) if stored is None else stored
        name = name or stored.current
        context = stored.get(name) if name else None
    if server is None:
        if context is None:
            raise SettingsInvalid(
                "No server is set; run `taskctl login --server URL --token-stdin`, "
                "or `taskctl serve` in another terminal to try it out."
            )
        server = context.server
    if context is not None and origin(context.server) != origin(server):
        context, name = None, None
    if context is not None:
        allow_http = allow_http or context.allow_http
        token = (context.token or token) if flags.context else (token or context.token)
    return ClientSettings(
        server=server_root(server, allow_http=allow_http),
        token=token,
        context=name,
        timeout=timeout(flags, environ),
        allow_http=allow_http,
    )


def timeout(flags: Flags, environ: Mapping[str, str] = os.environ) -> float:
    """Seconds for one operation: --timeout, TASKCTL_TIMEOUT or 30.

    Raises:
        SettingsInvalid: it is no number of seconds.
    """
    flag, variable = flags.timeout, environ.get("TASKCTL_TIMEOUT")
    if flag is None and not variable:
        return TIMEOUT_DEFAULT
    where = "TASKCTL_TIMEOUT" if flag is None else "--timeout"
    try:
        seconds = float(variable or "") if flag is None else flag
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 24 * 3600:  # false for nan, too
        raise SettingsInvalid(f"{where} is a number of seconds, more than 0 and at most a day.")
    return seconds


def path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the contexts are stored: TASKCTL_CONFIG_DIR, or the platform's place for configuration."""
    if chosen := environ.get("TASKCTL_CONFIG_DIR"):
        folder = Path(chosen)
    elif sys.platform in {"darwin", "win32"}:
        from platformdirs import user_config_path  # noqa: PLC0415 - slow, and Linux needs three lines

        folder = user_config_path("taskctl", appauthor=False)
    else:
        # The XDG Base Directory Specification: a relative path is invalid and to be ignored.
        base = environ.get("XDG_CONFIG_HOME", "")
        folder = (Path(base) if base.startswith("/") else Path.home() / ".config") / "taskctl"
    return folder / "contexts.json"


def load(environ: Mapping[str, str] = os.environ) -> Contexts:
    """Read what is stored; nothing is stored where there is no file.

    Raises:
        SettingsInvalid: the file cannot be read or is not what `save_context` writes.
    """
    file = path(environ)
    try:
        data = json.loads(file.read_text("utf-8"))
        if data["version"] != 1:
            raise SettingsInvalid(
                f"{file} was written by a newer taskctl; upgrade this one, or move the file away."
            )
        contexts = {name: _context(entry) for name, entry in data["contexts"].items()}
        current = data["current"]
        if current is not None and current not in contexts:
            raise ValueError(f"no context {current!r}")  # noqa: TRY301 - as any other wrong shape
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise SettingsInvalid(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SettingsInvalid(f"{file} is damaged; mend it, or move it away and log in again.") from error
    return Contexts(current, contexts)


def _context(entry: Any) -> Context:
    server, token, allow_http = entry["server"], entry.get("token"), entry.get("allow_http", False)
    if not (isinstance(server, str) and isinstance(token, str | None) and isinstance(allow_http, bool)):
        raise TypeError("a context has a server, a token and a flag")
    if token is not None:
        checked_token(token, "the context")
    return Context(server, token, allow_http)


def save_context(
    name: str,
    server: str,
    token: str | None,
    *,
    allow_http: bool = False,
    make_current: Literal["always", "if-none", "never"] = "always",
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Store a context, in place of one with the same name.

    Raises:
        SettingsInvalid: the name, the server or the token is not one, or the stored file is damaged.
        LocalError: the file cannot be written; it stays as it was.
    """
    if not _NAME.fullmatch(name):
        raise SettingsInvalid(
            f"{name!r} cannot name a context: 1 to 64 letters, digits, dots, dashes or underscores."
        )
    checked = None if token is None else checked_token(token, "the token")
    context = Context(server_root(server, allow_http=allow_http), checked, allow_http)

    def add(stored: Contexts) -> Contexts:
        current = stored.current
        if make_current == "always" or (make_current == "if-none" and current is None):
            current = name
        return Contexts(current, {**stored.contexts, name: context})

    _change(add, environ)


def use_context(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Make a context the current one. Raises as `save_context`, and where there is none of this name."""

    def use(stored: Contexts) -> Contexts:
        stored.get(name)
        return stored._replace(current=name)

    _change(use, environ)


def remove_context(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Forget a context; none is current after the current one. Raises as `use_context`."""

    def remove(stored: Contexts) -> Contexts:
        stored.get(name)
        others = {other: context for other, context in stored.contexts.items() if other != name}
        return Contexts(None if stored.current == name else stored.current, others)

    _change(remove, environ)


def _change(change: Callable[[Contexts], Contexts], environ: Mapping[str, str]) -> None:
    """Read, change, write: two processes at once take turns, and neither loses anything."""
    file = path(environ)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unwritable(file, error) from error
    try:
        if sys.platform != "win32":
            import fcntl  # noqa: PLC0415 - not on every platform

            fcntl.flock(lock, fcntl.LOCK_EX)
        _write(file, change(load(environ)))
    finally:
        os.close(lock)  # which unlocks


def _write(file: Path, stored: Contexts) -> None:
    """Replace the file in one step; a reader sees the old one or the new one, whole."""
    data = {
        "version": 1,
        "current": stored.current,
        "contexts": {
            name: {"server": context.server, "token": context.token, "allow_http": context.allow_http}
            for name, context in stored.contexts.items()
        },
    }
    temporary = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(data, stream, indent=2)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> LocalError:
    return LocalError(f"{file} cannot be written: {error.strerror}. What is stored is as it was.")
