"""`python -m taskctl …` in processes with nothing to import: forked off one that has imported everything.

To import a server takes the better part of a second of CPU, and the tests start hundreds of them. What is
started here is a process of its own all the same: a child of whoever asked for it, with its own arguments,
environment, directory and streams, that runs `taskctl.__main__` to its end.

A new interpreter is started instead for the client's commands, which import little, where the environment
holds anything that an interpreter reads at its start, and everywhere but on Linux. With COLD_STARTS set that
is always so.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAVY = {"serve", "migrate", "db", "token", "config"}
"""The commands that import more than a client."""

_LATE = re.compile(r"PATH|HOME|TERM|COLUMNS|COVERAGE_\w+|DATABASE_URL|(BETTER_AUTH|TASKCTL|XDG)_\w+")
"""Variables that nothing reads before `main` runs, or that are seen to below."""

_MODULES = (
    "alembic.command",
    "coverage",
    "httptools",
    "rich.console",
    "sqlmodel",
    "taskctl.cli.root",
    "taskctl.client",
    "taskctl.server.backup",
    "taskctl.server.connections",
    "taskctl.server.distribution",
    "taskctl.server.serving",
    "uvloop",
)
"""Without prometheus_client, which reads the environment when it is imported."""

_REQUEST_MAX = 1 << 18  # bytes
_SET_CHILD_SUBREAPER = 36  # of prctl(2)


class Process(subprocess.Popen[Any]):
    """A `subprocess.Popen` of `taskctl`.

    Args:
        words: its arguments.
        env: its whole environment.
        options: as Popen takes them; with others than `cwd`, the streams and `text` it is a new interpreter.
    """

    def __init__(self, words: Sequence[str], *, env: Mapping[str, str], **options: Any) -> None:
        can = sys.platform == "linux" and "COLD_STARTS" not in os.environ
        can = can and options.keys() <= {"cwd", "stdin", "stdout", "stderr", "text"}
        self._warm = can and not _HEAVY.isdisjoint(words) and all(map(_LATE.fullmatch, env))
        super().__init__([sys.executable, "-m", "taskctl", *words], env=env, **options)

    def _execute_child(self, *arguments: Any) -> None:
        """Start the process: what Popen calls for it, in CPython 3.11 to 3.13."""
        if not self._warm:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        args, _, _, _, _, cwd, env, *_ = arguments
        ends = arguments[10:16]
        streams = [end if end != -1 else ours for ours, end in enumerate((ends[0], ends[3], ends[5]))]
        request = {"words": args[3:], "cwd": os.fspath(cwd or Path.cwd()), "env": dict(env)}
        self.pid = _template.fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


class _Template:
    """The process that the others are forked off; it is started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Have a process made, which becomes a child of ours; return its id."""
        with self._lock:
            channel = self._channel or self._start()
            # The new process's parent ends at once, and for so long orphans come to us.
            _prctl(_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(channel, [json.dumps(request).encode()], streams)
                said = channel.recv(100)
            finally:
                _prctl(_SET_CHILD_SUBREAPER, 0)
        return int(said)

    def _start(self) -> socket.socket:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._channel, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_MAX)
        self._channel.settimeout(60)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={"PATH": os.environ["PATH"]},
                pass_fds=[theirs.fileno()],
            )
        return self._channel

    def close(self) -> None:
        """End it; the processes live on."""
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.wait(timeout=30)
            self._channel = self._process = None


_template = _Template()
close = _template.close


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value, 0, 0, 0):
        raise OSError("prctl failed")


def _serve(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request; return twice: in each new process what was asked for, and None at the end."""
    while True:
        request, streams, _, _ = socket.recv_fds(channel, _REQUEST_MAX, 3)
        if not request:
            return None
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            if pid := os.fork():
                os.write(writing, str(pid).encode())
                os._exit(0)
            os.close(reading)
            os.close(writing)
            return json.loads(request), streams
        os.waitpid(between, 0)
        channel.send(os.read(reading, 100))
        for number in (reading, writing, *streams):
            os.close(number)


def _become(words: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[int]) -> None:
    """Be what a new interpreter in this directory and environment, with these streams, would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    # The interpreter sets this one where there is no locale (PEP 538).
    coerced = {name: text for name, text in os.environ.items() if name == "LC_CTYPE"}
    os.environ.clear()
    os.environ.update(coerced | env)
    sys.argv[1:] = words
    sys.path[0] = cwd
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        former = getattr(sys, name)
        raw: Any = io.FileIO(number, "wb" if number else "rb", closefd=False)
        raw.name = f"<{name}>"
        buffer = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
        lines = raw.isatty() or name == "stderr"
        stream = io.TextIOWrapper(buffer, former.encoding, former.errors, newline="\n", line_buffering=lines)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        for name in _MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        asked = _serve(channel)
    if asked is not None:
        request, streams = asked
        _become(**request, streams=streams)
        import coverage  # noqa: PLC0415 - has been imported

        coverage.process_startup(force=True, slug="fork")
        runpy.run_module("taskctl", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
