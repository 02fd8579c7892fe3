"""A worker of `serve --workers`: `python -m taskctl.server.worker DESCRIPTOR`, run by the supervisor."""

import asyncio
import contextlib
import faulthandler
import signal
import socket
import sys
from multiprocessing.connection import Connection
from typing import Any

import structlog

from taskctl.config import ServerSettings
from taskctl.errors import TaskctlError
from taskctl.server import logs
from taskctl.server.listening import Listener
from taskctl.server.process import Server
from taskctl.server.supervisor import ALIVE, ASK, DRAIN, HURRY, READY, SERVING, STACKS

log: Any = structlog.get_logger()


class Worker(Server):
    """Serves as its supervisor says, and ends when the supervisor is gone."""

    def __init__(self, settings: ServerSettings, listener: Listener, channel: Connection) -> None:
        super().__init__(settings, listener, announce=lambda: self._tell(READY))
        self._channel = channel
        self._last = False

    async def startup(self, sockets: Any = None) -> None:
        """Listen, say so, and listen to the supervisor."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._obey)
        self._tell(SERVING)

    def _tell(self, word: str) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, which `_obey` notices
            self._channel.send(word)

    def _obey(self) -> None:
        try:
            word = self._channel.recv()
        except (EOFError, OSError):
            self._last = True
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            log.warning("supervisor_gone")
            self.drain(0)
            return
        if word == ASK:
            self._tell(ALIVE)
            return
        self._last = True
        if word == HURRY or (word == DRAIN and not self._drain.draining):
            self.handle_exit(signal.SIGTERM, None)


def main(descriptor: int) -> int:
    """Serve until the supervisor, or SIGTERM, says otherwise; return the exit code."""
    channel = Connection(descriptor)
    try:
        settings, number, ours, inode = channel.recv()
    except EOFError:
        return 0
    logs.configure(settings)
    try:
        worker = Worker(settings, Listener(socket.socket(fileno=number), ours, inode), channel)
        faulthandler.register(STACKS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, worker.handle_exit)
        worker.run()
    except TaskctlError as error:
        log.error("worker_failed", detail=error.detail)  # noqa: TRY400 - the detail says it all
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
