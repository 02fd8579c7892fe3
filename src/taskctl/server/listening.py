"""The socket that a server listens on: made for an address or a path, or taken over from who started us."""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from taskctl.errors import LocalError, SettingsInvalid, UsageInvalid

_BACKLOG = 2048
_POLL_SECONDS = 0.05
_RELEASE_SECONDS = 1.0
"""How long a taken port is tried again: workers whose supervisor was killed let go of it a moment later."""

_FIRST_ACTIVATED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_SO_ATTACH_FILTER = 26
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""For the kernel, in BPF: load the TCP flags; is it a SYN? then drop the packet; else keep it."""


@dataclass
class Listener:
    """A listening socket."""

    socket: socket.socket
    ours: bool = True
    """Whether it ends with us, or somebody else goes on using it."""
    inode: int | None = None
    """Of the path that we have made for it."""

    @property
    def url(self) -> str:
        """Where clients find it: `http://host:port`, or `unix:/path`."""
        name = self.socket.getsockname()
        if isinstance(name, (str, bytes)):
            return f"unix:{os.fsdecode(name)}"
        host, port = name[:2]
        return f"http://{'[' + host + ']' if ':' in host else host}:{port}"

    @property
    def host(self) -> str:
        """The address it is bound to; empty for a path."""
        name = self.socket.getsockname()
        return "" if isinstance(name, (str, bytes)) else str(name[0])

    def refuse(self) -> None:
        """Let no new connection begin, so that closing resets none that waits to be accepted.

        A client that comes now finds no path, or tries the port again until it is refused or another
        server has it. Where the kernel has no way for this, nothing happens.
        """
        if not self.ours:
            return
        with contextlib.suppress(OSError):
            if self.inode is not None:
                path = Path(os.fsdecode(self.socket.getsockname()))
                if path.stat().st_ino == self.inode:  # not a successor's
                    path.unlink()
            elif sys.platform == "linux" and self.socket.family != socket.AF_UNIX:
                program = ctypes.create_string_buffer(
                    b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
                )
                filter_ = struct.pack("HL", len(_NO_SYN), ctypes.addressof(program))
                self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)

    def limit_stalls(self, seconds: float) -> None:
        """Let the kernel end connections whose client takes nothing of an answer for so long (RFC 5482)."""
        if sys.platform == "linux" and self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def close(self) -> None:
        """Close our copy."""
        self.socket.close()


def listen(host: str, port: int) -> Listener:
    """Listen on an address.

    Raises:
        SettingsInvalid: there is no such address.
        LocalError: it cannot be listened on.
    """
    deadline = time.monotonic() + _RELEASE_SECONDS
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            return Listener(socket.create_server((host, port), family=family, backlog=_BACKLOG))
        except socket.gaierror as error:
            raise SettingsInvalid(f"TASKCTL_HOST is wrong: there is no address {host!r}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise LocalError(
                f"Cannot listen on {host} port {port}: {reason}; --port 0 takes a free port"
            ) from error


def listen_at(path: Path) -> Listener:
    """Listen on a Unix socket that everybody may connect to who can reach its directory.

    Raises:
        LocalError: the path cannot be used, or is in use.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            if path.is_socket() and not _answers(path):
                path.unlink()  # a killed server's
            listener.bind(str(path))
            path.chmod(0o666)
            listener.listen(_BACKLOG)
            inode = path.stat().st_ino
        except OSError as error:
            raise LocalError(f"Cannot listen on {path}: {error.strerror or error}") from error
        stack.pop_all()
        return Listener(listener, inode=inode)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def adopt(number: int) -> Listener:
    """Take over a listening socket that whoever started us has opened.

    Raises:
        UsageInvalid: this descriptor is none.
    """
    try:
        listener = socket.socket(fileno=number)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UsageInvalid(f"The socket of descriptor {number} does not listen")
    except OSError as error:
        raise UsageInvalid(f"Descriptor {number} is not a listening socket: {error.strerror}") from error
    listener.set_inheritable(False)
    return Listener(listener, ours=False)


def activated() -> int | None:
    """The descriptor of the socket that systemd has opened for us (sd_listen_fds(3)), or None.

    Raises:
        UsageInvalid: there are several.
    """
    count = os.environ.pop("LISTEN_FDS", "0")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or count == "0":
        return None
    if count != "1":
        raise UsageInvalid(f"The socket unit has {count} sockets, and one is used: give each its own service")
    return _FIRST_ACTIVATED
