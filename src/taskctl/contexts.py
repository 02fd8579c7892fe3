"""The client's settings: which server, as whom. Standard library only.

A context is a server and a token under a name, with the auth server that renews the token where one does.
They live in one file, `contexts.json`, that only its owner may read, the secrets in it or in the system's
keyring; what a command uses is settled once, by `resolve`, and passed down. The classes are named tuples
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

from taskctl import private_file
from taskctl.addresses import origin, server_root
from taskctl.errors import NotLoggedIn, SettingsInvalid

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


class Session(NamedTuple):
    """A login at an auth server. Its token goes there alone, and yields tokens for the API."""

    auth_url: str
    token: str

    def __repr__(self) -> str:
        return f"Session({self.auth_url!r})"


class Context(NamedTuple):
    """A server, and a token for it if there is one.

    Attributes:
        auth_url, client_id: where and as what to log in again; kept after a logout.
        session: the session token at `auth_url`; None where the token is not renewed.
        keyring: whether the secrets belong into the system's keyring; kept after a logout.
        held: whether the keyring holds them now; then `token` and `session` are None here.
    """

    server: str
    token: str | None = None
    allow_http: bool = False
    auth_url: str | None = None
    client_id: str | None = None
    session: str | None = None
    keyring: bool = False
    held: bool = False

    def __repr__(self) -> str:
        return f"Context({self.server!r})"

    @property
    def logged_in(self) -> bool:
        """Whether there is a token for the server, here or in the keyring."""
        return self.held or self.token is not None


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
    """What one command uses. `token` is None only before `login`; `timeout` is in seconds.

    `session` renews the token; None where nothing does, as with a token from TASKCTL_TOKEN.
    """

    server: str
    token: str | None
    context: str | None = None
    timeout: float = TIMEOUT_DEFAULT
    allow_http: bool = False
    session: Session | None = None

    def __repr__(self) -> str:
        return f"ClientSettings({self.server!r}, context={self.context!r})"

    def require_token(self) -> None:
        """See to it that there is a token to send.

        Raises:
            NotLoggedIn: there is none for this server.
        """
        if self.token is None:
            raise NotLoggedIn(
                f"There is no token for {self.server}; run `taskctl login --server {self.server}` with "
                "--auth-url URL or --token-stdin, or set TASKCTL_TOKEN."
            )


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
        KeyringFailed: the context's token is in the system's keyring, which does not give it.
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
                "No server is set; run `taskctl login --server URL` with --auth-url URL or --token-stdin, "
                "or `taskctl serve` in another terminal to try it out."
            )
        server = context.server
    if context is not None and origin(context.server) != origin(server):
        context, name = None, None
    session = None
    if name is not None and context is not None:
        allow_http = allow_http or context.allow_http
        if flags.context or token is None:
            known = with_secrets(name, context, environ)
            token, session = known.token or token, session_of(known)
    return ClientSettings(
        server=server_root(server, allow_http=allow_http),
        token=token,
        context=name,
        timeout=timeout(flags, environ),
        allow_http=allow_http,
        session=session,
    )


def session_of(context: Context) -> Session | None:
    """The session that renews a context's token; the context as `with_secrets` returns it."""
    if context.session is None or context.auth_url is None:
        return None
    return Session(context.auth_url, context.session)


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
    defaults = Context("")._asdict()
    context = Context(**{name: entry.get(name, default) for name, default in defaults.items()})
    for value, default in zip(context, defaults.values(), strict=True):
        if not isinstance(value, str | None if default is None else type(default)):
            raise TypeError("a context consists of texts and flags")
    if not context.server:
        raise ValueError("a context has a server")
    try:
        for token in (context.token, context.session):
            if token is not None:
                checked_token(token, "the context")
    except SettingsInvalid as error:
        raise ValueError(error.detail) from error
    return context


def with_secrets(name: str, context: Context, environ: Mapping[str, str] = os.environ) -> Context:
    """A stored context with its secrets in it, from wherever they are.

    Raises:
        SettingsInvalid, KeyringFailed: they are in the system's keyring, which does not give them.
    """
    if not context.held:
        return context
    from taskctl import vault  # noqa: PLC0415 - for the few that keep secrets there

    token, session = vault.read(_entry(name, environ))
    return context._replace(token=token, session=session)


def _entry(name: str, environ: Mapping[str, str]) -> str:
    """What the keyring knows a context by: names are unique within a file of contexts."""
    return f"{path(environ)}:{name}"


def save_context(
    name: str,
    server: str,
    token: str | None,
    *,
    allow_http: bool = False,
    auth_url: str | None = None,
    client_id: str | None = None,
    session: str | None = None,
    keyring: bool = False,
    make_current: Literal["always", "if-none", "never"] = "always",
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Store a context, in place of one with the same name; its attributes are those of `Context`.

    Raises:
        SettingsInvalid: the name, a server or a token is not one, or the stored file is damaged.
        KeyringFailed: the keyring does not take the secrets; what is stored stays as it was.
        LocalError: the file cannot be written; it stays as it was.
    """
    if not _NAME.fullmatch(name):
        raise SettingsInvalid(
            f"{name!r} cannot name a context: 1 to 64 letters, digits, dots, dashes or underscores."
        )
    context = Context(
        server_root(server, allow_http=allow_http),
        None if token is None else checked_token(token, "the token"),
        allow_http,
        None if auth_url is None else server_root(auth_url, allow_http=allow_http),
        client_id,
        None if session is None else checked_token(session, "the session"),
        keyring,
    )

    def add(stored: Contexts) -> Contexts:
        current = stored.current
        if make_current == "always" or (make_current == "if-none" and current is None):
            current = name
        return _put(stored._replace(current=current), name, context, environ)

    _change(add, environ)


def renew_token(name: str, session: Session, token: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Store a token that `session` has given; nothing is stored where the context has another or none by now.

    Raises as `save_context`.
    """

    def renew(stored: Contexts) -> Contexts:
        known = stored.contexts.get(name)
        if known is None or session_of(known := with_secrets(name, known, environ)) != session:
            return stored
        return _put(stored, name, known._replace(token=token), environ)

    _change(renew, environ)


def forget_tokens(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Forget a context's secrets; all else of it stays, for the next login.

    Raises as `use_context`, and `KeyringFailed` where the keyring does not let go of them: they are forgotten
    here all the same.
    """

    def forget(stored: Contexts) -> Contexts:
        return _put(stored, name, stored.get(name)._replace(token=None, session=None), environ)

    _change(forget, environ)


def use_context(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Make a context the current one. Raises as `save_context`, and where there is none of this name."""

    def use(stored: Contexts) -> Contexts:
        stored.get(name)
        return stored._replace(current=name)

    _change(use, environ)


def remove_context(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Forget a context; none is current after the current one. Raises as `forget_tokens`."""

    def remove(stored: Contexts) -> Contexts:
        stored.get(name)
        others = {other: context for other, context in stored.contexts.items() if other != name}
        return Contexts(None if stored.current == name else stored.current, others)

    _change(remove, environ)


def _put(stored: Contexts, name: str, context: Context, environ: Mapping[str, str]) -> Contexts:
    """Put a context in place of what has this name, its secrets into the keyring where it asks for that."""
    hold = False
    if context.keyring and context.token is not None:
        from taskctl import vault  # noqa: PLC0415 - for the few that keep secrets there

        vault.write(_entry(name, environ), context.token, context.session)
        context, hold = context._replace(token=None, session=None), True
    return stored._replace(contexts={**stored.contexts, name: context._replace(held=hold)})


def _change(change: Callable[[Contexts], Contexts], environ: Mapping[str, str]) -> None:
    """Read, change, write: two processes at once take turns, and neither loses anything.

    What the contexts do not use any more is taken out of the keyring last, so that one that does not open
    keeps nobody from logging out.
    """
    file = path(environ)
    with private_file.exclusive(file):
        before = load(environ)
        after = change(before)
        data = {
            "version": 1,
            "current": after.current,
            "contexts": {name: _members(context) for name, context in after.contexts.items()},
        }
        private_file.replace(file, data, indent=2)
        for name, context in before.contexts.items():
            if context.held and not after.contexts.get(name, Context("")).held:
                from taskctl import vault  # noqa: PLC0415 - for the few that keep secrets there

                vault.erase(_entry(name, environ))


def _members(context: Context) -> dict[str, Any]:
    """A context as it is stored: three members always, the others where they say something."""
    members = context._asdict()
    return {
        name: value
        for name, value in members.items()
        if name in {"server", "token", "allow_http"} or value not in {None, False}
    }
