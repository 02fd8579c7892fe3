"""How much CPU a command of the client takes from start to end, against importing its library."""

import os
import pty
import statistics
import subprocess
import sys

_COMMANDS = {
    "import typer": ("-c", "import typer"),
    "--version": ("-m", "taskctl", "--version"),
    "tasks list --json": ("-m", "taskctl", "tasks", "list", "--json"),
    "tasks list": ("-m", "taskctl", "tasks", "list"),
}
"""The last one writes to a terminal."""


def startup(port: int, token: str, rounds: int) -> dict[str, float]:
    """CPU milliseconds of each command, taken in turn."""
    environ = os.environ | {
        "TASKCTL_SERVER": f"http://127.0.0.1:{port}",
        "TASKCTL_TOKEN": token,
        "TERM": "xterm-256color",
    }
    found: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(rounds + 1):  # the first time fills caches
        for name, arguments in _COMMANDS.items():
            found[name].append(_cpu_milliseconds(arguments, environ, terminal=name == "tasks list"))
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def _cpu_milliseconds(arguments: tuple[str, ...], environ: dict[str, str], *, terminal: bool) -> float:
    master, slave = pty.openpty() if terminal else (None, subprocess.DEVNULL)
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.DEVNULL,
    ) as process:
        if master is not None:
            os.close(slave)
            try:
                while os.read(master, 1 << 16):
                    pass
            except OSError:  # how Linux tells the end of a terminal
                pass
            os.close(master)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed")
    return (usage.ru_utime + usage.ru_stime) * 1000
