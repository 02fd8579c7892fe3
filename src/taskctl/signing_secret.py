"""The secret that signs tokens: which ones are too weak, and the one that development keeps."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from taskctl.errors import SettingsInvalid
from taskctl.vocabulary import MIN_SECRET_BYTES

EXAMPLE_SECRET = "replace-me-with-at-least-32-random-bytes"  # noqa: S105 - refused wherever it matters

PLACEHOLDERS = frozenset(
    {
        EXAMPLE_SECRET,
        # Better Auth's own defaults, used when its secret is not set.
        "better-auth-secret-12345678901234567890",
        "better-auth-secret-123456789",
        "better-auth-secret",
        "change-me",
        "changeme",
        "default",
        "password",
        "secret",
        "test",
        "your-secret",
        "your-secret-here",
        "your-secret-key",
        "your_secret_key",
        "supersecret",
        "super-secret",
    }
)
"""Secrets that everybody knows, in lower case."""


def weak_secret(secret: str) -> str | None:
    """Say what is wrong with a secret, or None: publicly known, or shorter than RFC 7518, 3.2 asks for."""
    if secret.strip().lower() in PLACEHOLDERS:
        return "is a publicly known placeholder"
    size = len(secret.encode())
    if size < MIN_SECRET_BYTES:
        return f"is {size} bytes long, at least {MIN_SECRET_BYTES} are required"
    return None


def kept_secret(data_dir: Path) -> str:
    """The development secret in `data_dir`, made on first use; only its owner can read it.

    Raises:
        SettingsInvalid: it can be neither read nor made.
    """
    path = data_dir / "secret"
    try:
        if not path.is_file():
            _make_secret(path)
        secret = path.read_text(encoding="utf-8").strip()
    except (FileExistsError, NotADirectoryError) as error:
        raise SettingsInvalid(f"TASKCTL_DATA_DIR is wrong: {data_dir} is not a directory") from error
    except PermissionError as error:
        raise SettingsInvalid(
            f"TASKCTL_DATA_DIR is wrong: {data_dir} is not ours to use; it takes a directory of your own"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"The development secret in {path} cannot be used: {error}") from error
    if weak_secret(secret):
        raise SettingsInvalid(f"The development secret in {path} {weak_secret(secret)}; remove the file")
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".secret-") as new:
        new.write(secrets.token_urlsafe(48))
        new.flush()
        # Of several processes at the same moment one makes the link, and all read what it holds.
        with contextlib.suppress(FileExistsError):
            os.link(new.name, path)
