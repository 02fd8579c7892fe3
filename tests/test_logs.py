"""Logging, in a process of its own: what a line is, and what never reaches a terminal."""

import json
import os
import re
import subprocess
import sys

import pytest

HOSTILE = "a\nb\r\x1b[31mred\x1b]0;title\x07 \x7f \x9b2J \x00 \u2028 \ud800 \"quoted\" 'too' \\ é"

PRELUDE = f"""
import logging, sys
import structlog
from taskctl.config import ServerSettings
from taskctl.server.logs import configure
environ = dict(pair.split("=") for pair in sys.argv[1:])
configure(ServerSettings.load(environ, env_file=None))
HOSTILE = {HOSTILE!a}
log = structlog.get_logger()

def fail(token):
    raise ValueError(HOSTILE)
"""

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
"""Everything that may move a cursor, but for the newline that ends an event."""


def run(program, *variables, **environ):
    """What a program wrote to stderr, line by line, after logging was set up."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *variables],
        env={name: text for name, text in os.environ.items() if name != "FORCE_COLOR"} | environ,
        capture_output=True,
        check=False,
    )
    text = done.stderr.decode("utf-8")
    assert done.returncode == 0, text
    assert done.stdout == b""
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


JSON = "TASKCTL_LOG_FORMAT=json"
CONSOLE = "TASKCTL_LOG_FORMAT=console"

VALUES = "path=HOSTILE, user_id=HOSTILE, nested={'a': [HOSTILE]}, raw=HOSTILE.encode('utf-8', 'replace')"
EVENTS = {
    "values": f"log.info('request', {VALUES})",
    "event": "log.warning(HOSTILE)",
    "uvicorn": "logging.getLogger('uvicorn.error').warning('Invalid %s [%d]', HOSTILE, 7)",
    "library": "logging.getLogger('psycopg').warning(HOSTILE)",
    "extra": "logging.getLogger('uvicorn').error('event', extra={'color_message': HOSTILE, 'x': {}})",
    "object": "log.info('event', value=type('X', (), {'__repr__': lambda self: HOSTILE})())",
    "error": "log.info('event', error=ValueError(HOSTILE))",
    "exception": "try:\n    fail('')\nexcept ValueError:\n    log.exception('failed', path=HOSTILE)",
    "library's exception": "try:\n    fail('')\nexcept ValueError:\n    logging.exception(HOSTILE)",
    "exception given": "log.error('failed', exc_info=ValueError(HOSTILE))",
    "stack": "logging.getLogger('x').info('event', stack_info=True)",
}
ONE_LINE = [name for name in EVENTS if "exception" not in name and name != "stack"]
each_event = pytest.mark.parametrize("name", EVENTS)


def written(variable):
    """What each event writes, by its name; one process logs them all."""
    mark = "print('---', file=sys.stderr, flush=True)"
    text = "\n".join(run(f"\n{mark}\n".join(EVENTS.values()), variable))
    return dict(zip(EVENTS, (part.strip("\n") for part in text.split("---\n")), strict=True))


@pytest.fixture(scope="module")
def as_json():
    return written(JSON)


@pytest.fixture(scope="module")
def on_console():
    return written(CONSOLE)


@each_event
def test_json_is_one_object_a_line(name, as_json):
    """Whatever is logged, however it is logged, one event is one line that is one JSON object."""
    [line] = as_json[name].split("\n")
    event = json.loads(line)
    assert event["level"] in {"info", "warning", "error"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", event["timestamp"])
    assert event["event"]
    assert not re.search(r"[\x00-\x1f]", line)


@each_event
def test_console_has_no_control_characters(name, on_console):
    """Nothing that came from outside moves the cursor or colours the terminal."""
    assert on_console[name]
    assert not CONTROL.search(on_console[name])


@pytest.mark.parametrize("name", ONE_LINE)
def test_console_is_one_line_an_event(name, on_console):
    """A value with a newline in it does not start a line of its own."""
    assert "\n" not in on_console[name]


def test_json_keeps_what_was_said():
    """Values come back from JSON exactly as they were logged, non-ASCII and numbers included."""
    [line] = run("log.info('request', path=HOSTILE, status=200, duration_ms=1.5, user_id=None)", JSON)
    event = json.loads(line)
    assert event["path"] == HOSTILE
    assert (event["event"], event["status"], event["duration_ms"], event["user_id"]) == (
        "request",
        200,
        1.5,
        None,
    )


@pytest.mark.parametrize("known", [True, False])
def test_event_of_a_request_is_as_structlog_has_it(known):
    """The event of a request, written without structlog, has structlog's members, order and values."""
    values = (
        "trace_id=HOSTILE, user_id=HOSTILE, route=HOSTILE, db_ms=0.25, client=HOSTILE"
        if known
        else "trace_id=None, user_id=None, route=None, db_ms=None, client=None"
    )
    program = f"""
from taskctl.server.logs import requests
for _ in range(2):
    requests.ended(request_id=HOSTILE, method=HOSTILE, status=200, duration_ms=1.5, size=7, {values})
    requests.write = None
"""
    ours, structlogs = (json.loads(line, object_pairs_hook=list) for line in run(program, JSON))
    assert ours.pop(0)[0] == structlogs.pop(0)[0] == "timestamp"
    assert ours == structlogs


@pytest.mark.parametrize("name", ["exception", "library's exception", "exception given"])
def test_json_has_the_exception(name, as_json):
    """An exception is a member of its event, with its type and message."""
    exception = json.loads(as_json[name])["exception"]
    assert "ValueError" in exception
    assert "red" in exception


@pytest.mark.parametrize("variable", [JSON, CONSOLE])
def test_traceback_shows_no_values(variable):
    """A traceback names the lines that failed, never the values of their variables: one may be a token."""
    program = """
for logger in (log, logging.getLogger("library")):
    try:
        fail("".join(["eyJhbGciOi", "JIUzI1NiJ9"]))
    except ValueError:
        logger.exception("failed")
"""
    text = "\n".join(run(program, variable))
    assert text.count("ValueError") >= 2
    assert "eyJhbGciOiJIUzI1NiJ9" not in text


@pytest.mark.parametrize("variable", [JSON, CONSOLE])
@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels_are_respected(level, heard, variable):
    """What is less important than the level is not written, whether it is ours or a library's."""
    program = """
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)(f"ours-{level}")
    getattr(logging.getLogger("library"), level)(f"theirs-{level}")
"""
    text = "\n".join(run(program, variable, f"TASKCTL_LOG_LEVEL={level}"))
    expected = [f"{whose}-{each}" for each in heard for whose in ("ours", "theirs")]
    assert re.findall(r"(?:ours|theirs)-\w+", text) == expected


def test_noise_is_silent():
    """What the server says itself is not said again by uvicorn, Alembic, httpx or the pool, at any level."""
    program = """
logging.getLogger("uvicorn.access").info("GET /")
logging.getLogger("uvicorn.error").info("Started server process")
logging.getLogger("alembic.runtime.migration").info("Running upgrade")
logging.getLogger("httpx").info("HTTP Request: GET https://app.example.com/api/auth/jwks?key=secret")
logging.getLogger("psycopg.pool").warning("error connecting")
logging.getLogger("psycopg.pool").error("gave up")
"""
    assert [json.loads(line)["event"] for line in run(program, JSON, "TASKCTL_LOG_LEVEL=debug")] == [
        "gave up"
    ]


def test_loggers_made_before_are_heard():
    """Loggers that libraries made at import write in the same form."""
    program = """
early = logging.getLogger("early")
configure(ServerSettings.load(environ, env_file=None))
early.info("heard")
"""
    [line] = run(program, JSON)
    assert json.loads(line)["event"] == "heard"
