"""Clients that go on while servers come and go, and what they were told."""

import contextlib
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

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


@contextlib.contextmanager
def load(balancer, threads=3):
    """Creates in parallel for as long as the block runs; yields the list of (title, outcome)."""
    outcomes = []
    over = threading.Event()

    def write(thread):
        number = 0
        while not over.is_set():
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
