"""Clients that go on while servers come and go, and what they were told."""

import contextlib
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg

from conftest import SECRET, until

TASKS = "/api/v1/me/tasks"


def variables(database_url, **more):
    """The settings of a server outside development."""
    return {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET, **more}


class Balancer:
    """A client's way to several servers: in turn, each request on a connection of its own.

    It goes on to the next one where nothing listens, and nowhere else: a request that was sent counts.
    """

    def __init__(self, ports, user):
        self._ports = ports
        self._headers = {**user.headers, "Content-Type": "application/json"}

    def post(self, number, title):
        """Create a task; return its status."""
        for attempt in range(len(self._ports) * 100):
            port = self._ports[(number + attempt) % len(self._ports)]
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                client.connect()
            except ConnectionRefusedError:
                continue
            with contextlib.closing(client):
                client.request("POST", TASKS, json.dumps({"title": title}), self._headers)
                answer = client.getresponse()
                answer.read()
                return answer.status
        raise AssertionError("nobody listens")


PAUSE = 0.02
"""Seconds between two requests of a client in a restart that takes seconds: idle connections are then part of
the load, and the servers that start get the processors.
"""


@contextlib.contextmanager
def load(balancer, threads=3, pause=0.0):
    """Creates in parallel for as long as the block runs; yields the list of (title, outcome)."""
    outcomes = []
    over = threading.Event()

    def write(thread):
        number = 0
        while not over.wait(pause):
            number += 1
            title = f"{thread}-{number}"
            try:
                outcomes.append((title, balancer.post(thread + number, title)))
            except OSError as error:
                outcomes.append((title, repr(error)))

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(write, thread) for thread in range(threads)]
        try:
            until(lambda: len(outcomes) > 20)
            yield outcomes
        finally:
            over.set()
    for each in running:
        each.result()


def titles(database_url, user):
    """The titles of all tasks of a user, sorted."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT title FROM task WHERE user_id = %s", [user.id]).fetchall()
    return sorted(title for (title,) in rows)


class Journal:
    """Writers that create a task and complete it, over and over, on kept-alive connections.

    A request is sent once, after a pause of so many seconds. What was acknowledged, and what was not, is
    written down.
    """

    def __init__(self, url, user, pause=0.0):
        self.created = {}
        """The titles of acknowledged creates, by id."""
        self.completed = set()
        """The ids of acknowledged completions."""
        self.failures = []
        """What else came back: a status with its code, or what broke the connection."""
        self._address = urlsplit(url).netloc
        self._user = user
        self._pause = pause
        self._over = threading.Event()

    def more(self, count=40):
        """Wait until so many further tasks were completed."""
        goal = len(self.completed) + count
        until(lambda: len(self.completed) >= goal)

    def write(self, writer):
        """Create and complete until it is over."""
        client = http.client.HTTPConnection(self._address, timeout=20)
        number = 0
        with contextlib.closing(client):
            while not self._over.is_set():
                number += 1
                title = f"{writer}-{number}"
                made = self._send(client, "POST", TASKS, {"title": title})
                if made is not None:
                    self.created[made["id"]] = title
                    path = f"{TASKS}/{made['id']}/complete"
                    if self._send(client, "PATCH", path, {"completed": True}) is not None:
                        self.completed.add(made["id"])

    def _send(self, client, method, path, body):
        """The answer's content, or None where it is no success."""
        self._over.wait(self._pause)
        try:
            client.request(
                method, path, json.dumps(body), {**self._user.headers, "Content-Type": "application/json"}
            )
            answer = client.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            client.close()
            self.failures.append((method, repr(error)))
            return None
        if answer.status in {200, 201}:
            return json.loads(content)
        self.failures.append((method, answer.status, content))
        return None

    def stop(self):
        """Let the writers end."""
        self._over.set()

    def check(self, database_url):
        """Every acknowledged task is there as acknowledged, and no create, acknowledged or not, made two."""
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT id, title, completed FROM task WHERE user_id = %s", [self._user.id]
            ).fetchall()
        kept = {number: title for number, title, _ in rows}
        assert self.created.items() <= kept.items()
        assert self.completed <= {number for number, _, completed in rows if completed}
        assert len(set(kept.values())) == len(rows)
        lost = sum(1 for method, *_ in self.failures if method == "POST")
        assert len(rows) <= len(self.created) + lost


@contextlib.contextmanager
def journal(url, user, writers=4, pause=0.0):
    """Writers for as long as the block runs; yields their journal."""
    kept = Journal(url, user, pause)
    with ThreadPoolExecutor(writers) as pool:
        running = [pool.submit(kept.write, writer) for writer in range(writers)]
        try:
            kept.more()
            yield kept
        finally:
            kept.stop()
    for each in running:
        each.result()
