"""The way to a server, which can be cut: a port of our own that leads there; and a desk at its end."""

import contextlib
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from taskctl.client import Client
from taskctl.contexts import Flags, resolve
from taskctl.desk import Desk


def opened(environ: dict[str, str], **options: Any) -> Desk:
    """A desk as commands have it, in this process."""
    settings = resolve(Flags(), environ)
    client = Client(settings.server, settings.token, timeout=settings.timeout)
    return Desk(client, settings, environ=environ, **options)


class Cable:
    """Forwards connections to a server, on one port for good.

    `cut` closes the port, and a connection to it is refused; `mend` opens it again. With `loses_answers`
    requests reach the server, and nothing comes back.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname, parts.port)
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.loses_answers = self.is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._listen()

    def cut(self) -> None:
        """Refuse what comes, and end what is there."""
        self.is_cut = True
        # Another thread's accept goes on holding a socket that is only closed.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()
        self._connections, self._threads = [], []

    def mend(self) -> None:
        """Let connections and answers through again, if they were not."""
        self.loses_answers = False
        if not self.is_cut:
            return
        self.is_cut = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listen()

    def _listen(self) -> None:
        self._start(self._accept, self._listener)

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._server)
                self._connections += [near, far]
                self._start(self._forward, near, far, False)
                self._start(self._forward, far, near, True)

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.loses_answers:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
