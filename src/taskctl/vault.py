"""The secrets of contexts in the system's keyring: the extra `keyring`, for those who chose it.

One entry a context, under the service `taskctl`. Whatever a keyring raises comes out as `KeyringFailed`:
backends raise what they like. PYTHON_KEYRING_BACKEND chooses another backend than keyring itself would.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskctl.errors import KeyringFailed, SettingsInvalid, TaskctlError

_SERVICE = "taskctl"


def write(entry: str, token: str, session: str | None) -> None:
    """Keep a token, and the session that renews it, in place of what the entry had.

    Raises:
        SettingsInvalid: the extra is not installed.
        KeyringFailed: the keyring does not take them, or takes them and keeps nothing.
    """
    with _keyring("take the token") as keyring:
        keyring.set_password(_SERVICE, entry, json.dumps({"token": token, "session": session}))
        if keyring.get_password(_SERVICE, entry) is None:  # such as its `null` backend
            raise KeyringFailed("The keyring has kept nothing of what it was given; choose another backend.")


def read(entry: str) -> tuple[str, str | None]:
    """The token and the session of an entry.

    Raises:
        SettingsInvalid: the extra is not installed.
        KeyringFailed: the keyring does not open, or what is in it is not what `write` has kept.
    """
    with _keyring("give the token") as keyring:
        kept = keyring.get_password(_SERVICE, entry)
    if kept is None:
        raise KeyringFailed("The keyring has no token for this context; run `taskctl login` again.")
    try:
        secrets = json.loads(kept)
        token, session = secrets["token"], secrets["session"]
        if not (isinstance(token, str) and isinstance(session, str | None)):
            raise TypeError("secrets are texts")  # noqa: TRY301 - as any other wrong shape
    except (ValueError, TypeError, KeyError) as error:
        raise KeyringFailed("What the keyring has for this context is damaged; log in again.") from error
    return token, session


def erase(entry: str) -> None:
    """Remove an entry; none is as good.

    Raises:
        SettingsInvalid: the extra is not installed.
        KeyringFailed: the keyring does not let go of it.
    """
    with _keyring("forget the token") as keyring:
        if keyring.get_password(_SERVICE, entry) is not None:
            keyring.delete_password(_SERVICE, entry)


def check() -> None:
    """See to it that there is a keyring, before a person goes through a login for it. Raises as `write`."""
    with _keyring("open") as keyring:
        keyring.get_password(_SERVICE, "")


@contextmanager
def _keyring(act: str) -> Iterator[Any]:
    """The library; what it raises says that the keyring cannot `act`."""
    try:
        import keyring  # noqa: PLC0415 - an extra, and slow
    except ImportError as error:
        raise SettingsInvalid(
            "Secrets are to be kept in the keyring, and there is no library for it: "
            "pip install 'taskctl[keyring]'."
        ) from error
    try:
        yield keyring
    except TaskctlError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise KeyringFailed(f"The keyring does not {act}: {why.rstrip('.')}.") from error
