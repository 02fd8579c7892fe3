"""The rules of the architecture: who imports whom, where SQL may stand, and what no module is called."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import taskctl

SOURCE = Path(taskctl.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py") if "alembic" not in path.parts)
MODULES = [
    ".".join(("taskctl", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in FILES
]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(MODULES, FILES, strict=True)}

PROBE = """
import json, sys
before = set(sys.modules)
__import__(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""

ALONE = """
import contextlib, importlib, json, os, sys, traceback

def forked(work):
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            said = work()
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.load(pipe)
    os.waitpid(pid, 0)
    return said

def everything():
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # which is told of the module, below
            importlib.import_module(name)
    return [name for name in sys.modules if name.partition(".")[0] not in {"taskctl", "__main__"}]

def alone(name):
    assert not any(each.partition(".")[0] == "taskctl" for each in sys.modules)
    importlib.import_module(name)
    return "" if name in sys.modules else "it is not there"

for name in forked(everything):
    with contextlib.suppress(ModuleNotFoundError):  # made by an extension, and not on its own
        importlib.import_module(name)
print(json.dumps({name: forked(lambda: alone(name)) for name in sys.argv[1:]}))
"""

PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
DOTENV = {"dotenv", "platformdirs"}
CRYPTOGRAPHY = {"cryptography", "cffi", "_cffi_backend", "_openssl"}
PYJWT = {"jwt", *CRYPTOGRAPHY}
CLIENT = {
    f"taskctl.{name}"
    for name in (
        "addresses",
        "answers",
        "better_auth",
        "claims",
        "client",
        "contexts",
        "desk",
        "journal",
        "operations",
        "outbox",
        "private_file",
        "events",
        "transport",
        "vault",
    )
}
ORM = {"sqlalchemy", "sqlmodel", "alembic"}
HTTP = {"fastapi", "starlette", "uvicorn"}
HEAVY = {*ORM, *HTTP, "psycopg", "psycopg_pool", "pydantic", "taskctl.server"}


@cache
def imported(module):
    """All modules that importing one brings in, in a fresh process."""
    command = [sys.executable, "-W", "error", "-c", PROBE, module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def packages(modules):
    """The packages from outside that modules belong to."""
    tops = {name.partition(".")[0] for name in modules}
    tops = {top for top in tops if not top.startswith("_sysconfigdata")}
    return tops - set(sys.stdlib_module_names) - {"taskctl", "coverage"}


def inside(modules, *names):
    """The modules that are one of the named ones or below it."""
    return sorted(each for each in modules if any(f"{each}.".startswith(f"{name}.") for name in names))


@pytest.mark.parametrize(
    ("module", "allowed", "own"),
    [
        ("taskctl", set(), set()),
        ("taskctl.vocabulary", set(), set()),
        ("taskctl.errors", set(), set()),
        ("taskctl.cli", set(), {"errors"}),
        ("taskctl.models", PYDANTIC, {"dates", "recurrence", "vocabulary"}),
        ("taskctl.quantities", set(), set()),
        ("taskctl.recurrence", set(), {"vocabulary"}),
        ("taskctl.dates", set(), {"recurrence", "vocabulary"}),
        ("taskctl.entry", set(), {"dates", "errors", "recurrence", "vocabulary"}),
        ("taskctl.signing_keys", CRYPTOGRAPHY, {"errors", "vocabulary"}),
        ("taskctl.signing_secret", set(), {"errors", "vocabulary"}),
        ("taskctl.strict_json", set(), set()),
        ("taskctl.setting", PYDANTIC | DOTENV, {"errors", "quantities"}),
        (
            "taskctl.trust",
            PYDANTIC | DOTENV,
            {"errors", "quantities", "setting", "signing_secret", "vocabulary"},
        ),
        (
            "taskctl.config",
            PYDANTIC | DOTENV,
            {"errors", "vocabulary", "quantities", "setting", "signing_secret", "trust"},
        ),
        ("taskctl.jws", set(), {"errors", "strict_json"}),
        ("taskctl.jwks", PYJWT, {"strict_json"}),
        ("taskctl.tokens", PYJWT, {"errors", "jwks", "jws", "strict_json", "vocabulary"}),
        ("taskctl.addresses", set(), {"errors", "vocabulary"}),
        ("taskctl.claims", set(), set()),
        ("taskctl.private_file", set(), {"errors"}),
        ("taskctl.contexts", set(), {"addresses", "errors", "private_file", "vocabulary"}),
        ("taskctl.vault", set(), {"errors"}),
        ("taskctl.answers", set(), {"errors"}),
        (
            "taskctl.transport",
            set(),
            {"addresses", "answers", "contexts", "errors", "private_file", "vocabulary"},
        ),
        ("taskctl.events", set(), {"vocabulary"}),
        (
            "taskctl.client",
            set(),
            {"addresses", "answers", "contexts", "errors", "private_file", "transport", "vocabulary"},
        ),
        (
            "taskctl.better_auth",
            set(),
            {"addresses", "answers", "contexts", "errors", "private_file", "transport", "vocabulary"},
        ),
        ("taskctl.tool_models", PYDANTIC, {"vocabulary"}),
        ("taskctl.operations", set(), set()),
        ("taskctl.outbox", set(), {"errors", "operations", "private_file"}),
        ("taskctl.journal", set(), {"errors", "operations", "private_file"}),
        (
            "taskctl.desk",
            set(),
            {"addresses", "claims", "contexts", "errors", "operations", "private_file", "vocabulary"},
        ),
        *(
            (name, set(), {"dates", "formats", "recurrence", "strict_json", "vocabulary"})
            for name in MODULES
            if name.startswith("taskctl.formats")
        ),
        ("taskctl.server.queries", set(), {"server", "vocabulary"}),
        ("taskctl.server.bulk", set(), {"errors", "server", "vocabulary"}),
        ("taskctl.bulk", PYDANTIC, {"dates", "models", "recurrence", "vocabulary"}),
        ("taskctl.server.recurrence", {"dateutil"}, {"server", "recurrence", "vocabulary"}),
    ],
)
def test_module_imports_no_more_than_allowed(module, allowed, own):
    """The modules that all share bring in only what the architecture grants them."""
    modules = imported(module)
    assert packages(modules) - allowed == set()
    assert {each.split(".")[1] for each in inside(modules, "taskctl") if "." in each} <= own | {
        module.rpartition(".")[2]
    }


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        *(
            (name, {*HEAVY, "jwt", "cryptography", "rich"})
            for name in MODULES
            if inside([name], "taskctl.cli")
        ),
        ("taskctl.server.app", {*CLIENT, "taskctl.cli", *ORM}),
        ("taskctl.server.queries", {*HTTP, *ORM, "psycopg"}),
        ("taskctl.server.tables", HTTP),
        ("taskctl.server.database", {*HTTP, *ORM}),  # and with it sessions, pool and pipeline
        ("taskctl.server.migrations", {*HTTP, *ORM}),
        ("taskctl.server.embedded", {*HTTP, *ORM}),
    ],
)
def test_module_never_imports(module, forbidden):
    """The client is light, the server does without the ORM while it serves, and data knows no HTTP."""
    assert inside(imported(module), *forbidden) == []


@pytest.fixture(scope="module")
def failures():
    """What goes wrong, if anything, where one of our modules is imported before all others of ours."""
    modules = [name for name in MODULES if name != "taskctl.__main__"]
    command = [sys.executable, "-W", "error", "-c", ALONE, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", [name for name in MODULES if name != "taskctl.__main__"])
def test_module_can_be_imported_alone(failures, module):
    """Every module imports by itself, without a warning and without a cycle."""
    assert failures[module] == ""


def imports(tree):
    """What a module imports, anywhere in it, functions and `if TYPE_CHECKING` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    """Nothing imports the command line, and the server imports neither it nor the client, even lazily."""
    found = list(imports(TREES[module]))
    if not inside([module], "taskctl.cli", "taskctl.__main__"):
        assert inside(found, "taskctl.cli") == []
    if inside([module], "taskctl.server"):
        assert inside(found, *CLIENT, "taskctl.assistant", "taskctl.tool_models") == []
    for_operators = inside(
        [module], *(f"taskctl.cli.{name}" for name in ("server", "backup", "token", "users"))
    )
    if inside([module], "taskctl.cli", *CLIENT) and not for_operators:
        assert inside(found, *HEAVY) == []
    data = ("queries", "bulk", "tables", "database", "sessions", "feed", "pool", "pipeline", "migrations")
    if inside([module], *(f"taskctl.server.{name}" for name in data)):
        assert inside(found, "fastapi", "starlette") == []


SQL = re.compile(
    r"\b(SELECT\s|INSERT\s+INTO\b|UPDATE\s+\w+\s+SET\b|DELETE\s+FROM\b|CREATE\s+TABLE\b|SET\s+\w+\s*=)"
)
DATA = [
    "queries",
    "lists",
    "functions",
    "bulk",
    "tables",
    "database",
    "sessions",
    "feed",
    "migrations",
    "embedded",
    "backup",
    "distribution",
    "purge",
    "users",
]
MAY_HOLD_SQL = {f"taskctl.server.{name}" for name in DATA}


def texts(tree):
    """Every text in a module but its docstrings."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("module", [name for name in MODULES if name not in MAY_HOLD_SQL])
def test_sql_has_its_place(module):
    """Routes, and everything else outside the data modules, hold no SQL."""
    assert [text for text in texts(TREES[module]) if SQL.search(text)] == []


def test_sql_scan_finds_sql():
    """The scan for SQL sees what it looks for where it is."""
    assert len([text for text in texts(TREES["taskctl.server.queries"]) if SQL.search(text)]) >= 5


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_concept(module):
    """A module is named for a concept, starts with a docstring, and is short enough to read."""
    assert not set(module.split(".")) & {
        "utils",
        "util",
        "core",
        "helpers",
        "common",
        "misc",
        "crud",
        "services",
    }
    path = FILES[MODULES.index(module)]
    assert ast.get_docstring(TREES[module])
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


EVERYTHING = """
import importlib, os, socket, sys

class Untouchable(dict):
    def __getitem__(self, name): return self.get(name)
    def get(self, name, default=None):
        if name.startswith(("TASKCTL_", "BETTER_AUTH_", "DATABASE_URL")):
            raise AssertionError(f"{name} was read at import")
        return original.get(name, default)
    __contains__ = lambda self, name: self.get(name) is not None

def refuse(event, arguments):
    if event in {"socket.connect", "socket.bind", "subprocess.Popen"}:
        raise AssertionError(f"{event} at import")

original, os.environ = os.environ, Untouchable(os.environ)
sys.addaudithook(refuse)
for name in sys.argv[1:]:
    importlib.import_module(name)
found = [
    f"{name}.{key}" for name in sys.argv[1:] for key, value in vars(sys.modules[name]).items()
    if type(value).__name__ in {"ServerSettings", "Engine", "AsyncConnectionPool", "Database", "FastAPI"}
]
assert not found, found
"""


def test_importing_everything_does_nothing(tmp_path):
    """Importing reads no setting, opens no connection, and makes no settings, engine, pool or app."""
    modules = [name for name in MODULES if name != "taskctl.__main__"]
    environ = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, *modules],
        env=environ | {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TASKCTL_PORT": "not a port"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_version_is_the_package_s():
    """The package knows its version, which is the one that was installed."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", taskctl.__version__)
