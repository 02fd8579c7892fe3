"""`taskctl tasks watch`, and the client's stream below it: what it shows, what it survives, how it ends."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from conftest import (
    SECRET,
    Server,
    User,
    bare_environ,
    free_port,
    make_user,
    stop,
    taskctl,
    until,
    wait_until_ready,
)
from taskctl.client import Client

TASKS = "/api/v1/me/tasks"
CHANGES = "/api/v1/me/changes"


@pytest.fixture(scope="module")
def watched(start_server: Callable[..., Server], database_url: str) -> Server:
    """A server with many heartbeats and two streams for each user."""
    return start_server(
        TASKCTL_ENV="test",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
        TASKCTL_STREAM_HEARTBEAT="0.1",
        TASKCTL_STREAMS_PER_USER="2",
    )


@contextlib.contextmanager
def watch(environ: dict[str, str], *arguments: str, out: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A `taskctl tasks watch` that runs for as long as the block, unless it ends before."""
    command = [sys.executable, "-m", "taskctl", "tasks", "watch", *arguments]
    with subprocess.Popen(
        command,
        env=environ,
        cwd=environ["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def environ_of(user: User, url: str, home: Path) -> dict[str, str]:
    """Of somebody who is logged in there."""
    return bare_environ(home, TASKCTL_SERVER=url, TASKCTL_TOKEN=user.token)


def add(server: Server, user: User, title: str) -> None:
    """Add a task."""
    assert httpx.post(server.url + TASKS, json={"title": title}, headers=user.headers).status_code == 201


def items(server: Server, user: User) -> list[dict[str, Any]]:
    """All changes of a user."""
    return list(httpx.get(server.url + CHANGES, headers=user.headers).json()["items"])


def test_a_restart_is_survived(
    launch: Callable[..., Server], watched: Server, database_url: str, user: User, tmp_path: Path
) -> None:
    """Over a restart of its server `watch` shows each change once, and Ctrl-C ends it with 130."""
    port = str(free_port())
    settings = {
        "TASKCTL_ENV": "test",
        "TASKCTL_PORT": port,
        "DATABASE_URL": database_url,
        "BETTER_AUTH_SECRET": SECRET,
    }
    server = wait_until_ready(launch(**settings))
    environ = environ_of(user, server.url, tmp_path)
    shown, rows = tmp_path / "ndjson", tmp_path / "rows"
    add(watched, user, "First")
    with (
        shown.open("wb") as first,
        rows.open("wb") as second,
        watch(environ, "--ndjson", "--since", "start", out=first) as ndjson,
        watch(environ, "--since", "start", out=second) as plain,
    ):
        until(lambda: shown.read_bytes().count(b"\n") == 1 and rows.read_bytes().count(b"\n") == 1)
        assert stop(server) == 0
        add(watched, user, "While it was away")
        wait_until_ready(launch(**settings))
        add(watched, user, "Afterwards")
        until(lambda: shown.read_bytes().count(b"\n") == 3 and rows.read_bytes().count(b"\n") == 3)
        for process in (ndjson, plain):
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert process.stderr is not None
            assert process.stderr.read() == b""
    changes = items(watched, user)
    assert [json.loads(line) for line in shown.read_text().splitlines()] == changes
    assert rows.read_text().splitlines() == [
        f"{each['at']}\tcreated\t{each['task']['id']}\t{each['task']['title']}" for each in changes
    ]


def test_a_terminal_is_safe(watched: Server, database_url: str, user: User, tmp_path: Path) -> None:
    """In a terminal a change is a line with its time of day; what would steer the terminal is escaped."""
    add(watched, user, "Buy milk \u202e")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE change SET task = replace(task::text, 'Buy', '\\u001b[31mBuy')::json WHERE user_id = %s",
            [user.id],
        )
    master, slave = pty.openpty()
    environ = environ_of(user, watched.url, tmp_path) | {"TERM": "xterm-256color", "TZ": "UTC"}
    with watch(environ, "--since", "start", out=slave) as process:
        os.close(slave)
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(master, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    os.close(master)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  created +1  \\x1b\[31mBuy milk \\u202e\r\n", line.decode())


def test_a_closed_pipe_ends_it(watched: Server, user: User, tmp_path: Path) -> None:
    """When nobody reads any more it ends quietly, although nothing changes."""
    add(watched, user, "Seen")
    environ = environ_of(user, watched.url, tmp_path)
    with watch(environ, "--since", "start", out=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"Seen" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == b""


def test_from_a_cursor(watched: Server, user: User, tmp_path: Path) -> None:
    """`--since` takes a cursor of the API and begins behind it."""
    add(watched, user, "Old")
    cursor = httpx.get(watched.url + CHANGES, headers=user.headers).json()["next_cursor"]
    add(watched, user, "New")
    environ = environ_of(user, watched.url, tmp_path)
    with watch(environ, "--ndjson", "--since", cursor, out=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["task"]["title"] == "New"


def test_refusals(watched: Server, database_url: str, user: User, tmp_path: Path) -> None:
    """What cannot be watched is told in a line: a bad cursor, an old one, nobody there, too many streams."""
    environ = environ_of(user, watched.url, tmp_path)
    start = httpx.get(f"{watched.url}{CHANGES}?since=now", headers=user.headers).json()["next_cursor"]
    add(watched, user, "Purged")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM change WHERE user_id = %s", [user.id])

    def refused(*arguments: str, **variables: str) -> tuple[int, str]:
        done = taskctl(*arguments, environ=environ | variables)
        found = re.fullmatch(r"taskctl: .*\((\w+)(?:, request \w+)?\)\n", done.err)
        assert found, done.err
        assert done.out == ""
        return done.code, found[1]

    assert refused("tasks", "watch", "--since", "yesterday") == (2, "bad_request")
    assert refused("tasks", "watch", "--since", start) == (5, "changes_expired")
    nobody = f"http://127.0.0.1:{free_port()}"
    assert refused("--timeout", "0.3", "tasks", "watch", TASKCTL_SERVER=nobody) == (8, "server_unreachable")
    with Client(watched.url, user.token) as one, Client(watched.url, user.token) as two:
        streams = [one.stream("now"), two.stream("now")]
        threads = [threading.Thread(target=next, args=(each, None), daemon=True) for each in streams]
        for thread in threads:
            thread.start()
        until(lambda: one.cursor and two.cursor)
        assert refused("--timeout", "0.3", "tasks", "watch") == (7, "too_many_streams")
        add(watched, user, "Lets them go")
        for thread, each in zip(threads, streams, strict=True):
            thread.join(20)
            each.close()


ITEM = {"number": 1, "type": "created", "at": "2026-01-02T03:04:05Z", "task": {"id": 1, "title": "ü"}}


def test_a_stream_in_pieces() -> None:
    """Events are read however they are cut and ended; one that is cut off is asked for again by its id."""
    text = json.dumps(ITEM, ensure_ascii=False)
    head, tail = text.split('"at"')
    whole = f'retry: 1\r\n\r\n: hello\nid: first\nevent: created\ndata: {head}\ndata:"at"{tail}\nother: x\n\n'
    answers = [
        [whole.encode(), b"id: second\ndata: {}\n"],
        [b": beat\n\nid: third\n\n", whole.replace("first", "fourth").encode()],
    ]
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for pieces in answers:
            connection, _ = listener.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                asked.append(request)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                for byte in b"".join(pieces):
                    connection.sendall(bytes([byte]))

    beats = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "token") as client:
            stream = client.stream("now", on_beat=lambda: beats.append(client.cursor))
            assert next(stream) == ITEM
            assert client.cursor == "first"
            assert next(stream) == ITEM
            assert client.cursor == "fourth"
            stream.close()
        thread.join(20)
    assert beats == [None, "first", "third", "third"]
    assert b"/changes?since=now " in asked[0]
    assert b"Last-Event-ID" not in asked[0]
    assert b"Last-Event-ID: first\r\n" in asked[1]


def test_pages_of_changes(watched: Server, user: User) -> None:
    """`Client.changes` gives a page, and the cursor with which it goes on."""
    with Client(watched.url, user.token) as client:
        assert client.changes("now")["items"] == []
        for title in ("One", "Two"):
            client.create_task(title)
        page = client.changes(limit=1)
        assert ([each["task"]["title"] for each in page["items"]], page["more"]) == (["One"], True)
        rest = client.changes(page["next_cursor"])
        assert [each["task"]["title"] for each in rest["items"]] == ["Two"]
        assert (client.cursor, rest["more"]) == (rest["next_cursor"], False)


def test_a_token_is_renewed_between_connections(watched: Server) -> None:
    """A stream that ended with its token goes on with a fresh one."""
    name = make_user().id
    tokens = [make_user(name).token]
    stale = make_user(name, lifetime=-3600).token

    def renew(_early: bool) -> str:
        return tokens.pop()

    with Client(watched.url, stale, renew=renew) as client:
        stream = client.stream(None)
        add(watched, make_user(name), "Seen")
        assert next(stream)["task"]["title"] == "Seen"
        stream.close()
    assert tokens == []
