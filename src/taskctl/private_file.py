"""JSON files that only their owner may read: replaced in one step, by one process at a time.

Standard library only.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from taskctl.errors import LocalError

_T = TypeVar("_T")


def of_user(folder: Path, server: str, user: str) -> Path:
    """The file for one user of one server, of those in a folder."""
    from hashlib import sha256  # noqa: PLC0415 - takes a while, and most commands need no such file

    account = f"{server}\n{user}"
    return folder / f"{sha256(account.encode()).hexdigest()[:32]}.json"


def load(file: Path, owner: Mapping[str, str], parse: Callable[[Mapping[str, Any]], _T]) -> _T | None:
    """What a file of a user's says, None where there is none.

    Args:
        file: made of what `replace` was given: an object with a `version` of 1, the members of `owner`, and
            what `parse` reads.
        owner: whose it must be.
        parse: raises ValueError, TypeError, KeyError or AttributeError where the content is none.

    Raises:
        LocalError: it cannot be read, or is damaged; then it has been set aside, for a person to look at.
    """
    try:
        data = json.loads(file.read_text("utf-8"))
        if data["version"] != 1:
            raise LocalError(f"{file} was written by a newer taskctl; upgrade this one.")
        if {name: data[name] for name in owner} != owner:
            raise ValueError("it is another user's")  # noqa: TRY301 - as any other wrong content
        return parse(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        aside = file.with_name(f"{file.name}.damaged-{os.urandom(4).hex()}")
        try:
            file.rename(aside)
        except OSError as unmoved:
            raise _unwritable(file, unmoved) from error
        raise LocalError(
            f"{file} is damaged. It is set aside as {aside.name}; what it says is not used."
        ) from error


@contextmanager
def exclusive(file: Path, suffix: str = ".lock") -> Iterator[None]:
    """Let one process at a time into the block, whoever comes first; the folder is made where it is missing.

    The lock is a file of its own, beside `file`: it outlives the file's replacement. Processes that end, in
    whatever way, let go of it.

    Raises:
        LocalError: the lock cannot be made.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(suffix), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unwritable(file, error) from error
    try:
        if sys.platform != "win32":
            import fcntl  # noqa: PLC0415 - not on every platform

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)  # which unlocks


def replace(file: Path, data: Any, *, indent: int | None = None, durable: bool = True) -> None:
    """Write `data` in place of the file; a reader sees the old content or the new one, whole.

    Args:
        file: in a folder that exists.
        data: what JSON can say.
        indent: spaces, for a file that people edit; one that grows is written several times as fast without.
        durable: whether to return only when it would survive a loss of power.

    Raises:
        LocalError: it cannot be written; the file is as it was.
    """
    temporary = file.with_name(f".{file.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(data, indent=indent) + "\n")
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable and sys.platform != "win32":
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> LocalError:
    return LocalError(f"{file} cannot be written: {error.strerror}. What is stored is as it was.")
