"""Several workers on one listening socket, each a process of its own, kept alive for as long as we live.

A worker gets its settings, and is told to end, through a socket pair; when the supervisor is gone, the pair
is closed, and the worker ends by itself. A worker that answers nothing there hangs, and is killed.
"""

import asyncio
import contextlib
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

import taskctl
from taskctl.config import ServerSettings
from taskctl.errors import LocalError
from taskctl.server import metrics
from taskctl.server.listening import Listener

log: Any = structlog.get_logger()

DRAIN, HURRY, ASK = "drain", "hurry", "ask"
"""What a worker is told; it answers the last."""

SERVING, READY, ALIVE = "serving", "ready", "alive"
"""What a worker tells: it listens; its checks are passed; its event loop turns."""

_TURNS = 10
"""How often we look, within the time that a worker has for an answer, whether it has come."""

STACKS = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM
"""Lets a worker write where each of its threads is."""

_STABLE_SECONDS = 10.0
"""A worker that ends sooner is replaced after a pause, which doubles each time."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0
_FAILED_STARTS_MAX = 5
_MARGIN_SECONDS = 15.0
"""How long after the drain's own limits a worker is killed."""

_WATCH_SECONDS = 0.3


@dataclass(eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    channel: Connection
    serving: bool = False
    ready: bool = False
    silent_turns: int = 0
    """For how many of our turns it has owed an answer."""

    def tell(self, word: str) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            self.channel.send(word)


class Supervisor:
    """Runs workers until it is told to end, which `handle_exit` does, and then lets them drain.

    Args:
        settings: complete, as `create_app` needs them; the workers get these very ones.
        listener: what the workers listen on.
        prepare: is awaited once, while they start.
        announce: is called when all of them are ready for the first time.
        reload: starts them afresh when a file of the package changes.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listener: Listener,
        *,
        prepare: Callable[[], Awaitable[None]] | None,
        announce: Callable[[], None],
        reload: bool = False,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._prepare = prepare
        self._announce = announce
        self._reload = reload
        self._workers: set[_Worker] = set()
        self._failed_starts = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_end = 0

    def run(self) -> None:
        """Run to the end.

        Raises:
            LocalError: the workers cannot start.
            TaskctlError: what `prepare` or `announce` raised.
        """
        try:
            asyncio.run(self._run())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # the first ended the others

    def handle_exit(self, number: int, _frame: FrameType | None) -> None:
        """Let the workers drain; told again, let them hurry."""
        if self._loop is None:
            sys.exit(128 + number)
        self._loop.call_soon_threadsafe(self._end)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._all_ready = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep()) for _ in range(self._settings.workers)]
            self._others = [group.create_task(self._become_ready())]
            # Who works on the code may stop it in a debugger.
            more = self._watch() if self._reload else self._look_after()
            self._others.append(group.create_task(more))
            await asyncio.wait(keepers)
            for task in self._others:
                task.cancel()

    def _end(self) -> None:
        self._told_to_end += 1
        if self._told_to_end == 1:
            # Else clients would still reach our copy of it, where nobody accepts.
            self._listener.close()
            self._changed.set()
            for task in self._others:
                task.cancel()
            patience = self._settings.drain_delay + self._settings.drain_timeout + _MARGIN_SECONDS
            asyncio.get_running_loop().call_later(patience, self._kill)
        for worker in self._workers:
            worker.tell(DRAIN if self._told_to_end == 1 else HURRY)

    def _ending(self) -> bool:
        return self._told_to_end > 0

    def _kill(self) -> None:
        for worker in self._workers:
            log.error("worker_killed", pid=worker.process.pid)
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    async def _become_ready(self) -> None:
        if self._prepare is not None:
            await self._prepare()
        await self._all_ready.wait()
        self._announce()

    async def _keep(self) -> None:
        """Have one worker run, again and again, until we are told to end."""
        pause = 0.0
        while not self._ending():
            started = time.monotonic()
            worker = await self._start()
            try:
                code = await worker.process.wait()
            finally:
                if worker.process.returncode is None:  # something else has failed
                    worker.tell(DRAIN)
                    worker.tell(HURRY)
                    await worker.process.wait()
                self._forget(worker)
                metrics.forget_worker(worker.process.pid)
            if self._ending():
                return
            if code:
                log.error("worker_ended", pid=worker.process.pid, reason=_reason(code))
            if not worker.serving:
                self._failed_starts += 1
                if self._failed_starts >= _FAILED_STARTS_MAX and not self._reload:
                    raise LocalError(
                        f"The workers end before they serve ({_reason(code)}): the log above says why"
                    )
            stable = code == 0 or time.monotonic() - started >= _STABLE_SECONDS
            pause = 0.0 if stable else min(max(2 * pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    async def _look_after(self) -> None:
        """Kill workers whose event loop does not turn any more; `_keep` replaces them.

        What is counted are our own turns and not seconds: they do not pass while all of us are suspended. One
        question is open at a time, so that nobody ever waits to send.
        """
        while True:
            await asyncio.sleep(self._settings.worker_timeout / _TURNS)
            for worker in [each for each in self._workers if each.serving]:
                worker.silent_turns += 1
                with contextlib.suppress(ProcessLookupError):
                    if worker.silent_turns == 1:
                        worker.tell(ASK)
                    elif worker.silent_turns == _TURNS:
                        log.error("worker_hung", pid=worker.process.pid)
                        worker.process.send_signal(STACKS)
                    elif worker.silent_turns > _TURNS:
                        worker.process.kill()

    async def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        number = self._listener.socket.fileno()  # we may have closed our copy before theirs is there
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # not from the working directory
                "-m",
                "taskctl.server.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), number),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for us alone
            )
        worker = _Worker(process, ours)
        self._workers.add(worker)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear, worker)
        with contextlib.suppress(OSError):
            ours.send((self._settings, number, self._listener.ours, self._listener.inode))
        if self._ending():
            worker.tell(DRAIN)
        return worker

    def _hear(self, worker: _Worker) -> None:
        try:
            word = worker.channel.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
            return
        if word == ALIVE:
            worker.silent_turns = 0
        elif word == SERVING:
            worker.serving, self._failed_starts = True, 0
            log.info("worker_serving", pid=worker.process.pid)
        elif word == READY:
            worker.ready = True
            if sum(each.ready for each in self._workers) == self._settings.workers:
                self._all_ready.set()

    def _forget(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        asyncio.get_running_loop().remove_reader(worker.channel.fileno())
        worker.channel.close()

    async def _watch(self) -> None:
        """Start the workers afresh when the package's files change."""
        folder = Path(taskctl.__file__).parent
        known = await asyncio.to_thread(_files, folder)
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if known != (known := await asyncio.to_thread(_files, folder)):
                log.info("reloading")
                for worker in self._workers:
                    with contextlib.suppress(ProcessLookupError):
                        worker.process.terminate()
                # Those who pause go on at once.
                self._changed.set()
                self._changed = asyncio.Event()


def _reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _files(folder: Path) -> dict[str, int]:
    """When each Python file below `folder` was changed."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.py")}
