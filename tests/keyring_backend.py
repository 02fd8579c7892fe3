"""A keyring for tests: a real backend of the library `keyring`, on the file that KEYRING_FILE names.

Chosen with PYTHON_KEYRING_BACKEND=keyring_backend.FileKeyring and this directory in PYTHONPATH.
"""

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked


class FileKeyring(KeyringBackend):
    """Entries by service and name; it is locked where the file says so."""

    priority = 1

    def get_password(self, service: str, username: str) -> str | None:
        """The secret of an entry, or None."""
        return self._entries().get(f"{service}\t{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep a secret."""
        self._write(self._entries() | {f"{service}\t{username}": password})

    def delete_password(self, service: str, username: str) -> None:
        """Forget a secret."""
        entries = self._entries()
        del entries[f"{service}\t{username}"]
        self._write(entries)

    def _entries(self) -> dict[str, str]:
        file = Path(os.environ["KEYRING_FILE"])
        text = file.read_text() if file.exists() else "{}"
        if text == "locked":
            raise KeyringLocked("The collection\nis locked!")
        return json.loads(text)

    def _write(self, entries: dict[str, str]) -> None:
        Path(os.environ["KEYRING_FILE"]).write_text(json.dumps(entries))
