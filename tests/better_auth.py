"""A real Better Auth for tests: the server in examples/better-auth, with what npm installs for it."""

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from waiting import until

EXAMPLE = Path(__file__).parents[1] / "examples" / "better-auth"
NODE_MIN = 20
PASSWORD = "a password for tests"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
"""What a program asks for that waits for its approval (RFC 8628, section 3.4)."""

_numbers = itertools.count(1)
_no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading everybody's certificates takes longer than a call


def missing(what: str) -> None:
    """Skip the test because this machine lacks something; fail where the run may skip nothing, as in CI."""
    if os.environ.get("NO_SKIPS"):
        pytest.fail(f"{what}, and NO_SKIPS is set")
    pytest.skip(what)


@dataclass(frozen=True)
class Account:
    """Somebody who has signed up; `session` is the opaque token that goes to Better Auth only."""

    id: str
    email: str
    session: str = field(repr=False)


@dataclass
class BetterAuth:
    """A running Better Auth."""

    url: str
    """Its origin."""
    path: str
    """Where its routes begin."""
    process: subprocess.Popen[bytes]
    log: Path
    """What it wrote, the links of its mails among it."""

    def ask(self, method: str, path: str, session: str = "", **options: Any) -> httpx.Response:
        """Call one of its routes, as a program with this session token would; options as httpx has them."""
        headers = {"Authorization": f"Bearer {session}"} if session else {}
        url = f"{self.url}{self.path}{path}"
        return httpx.request(method, url, headers=headers, trust_env=False, verify=_no_tls, **options)

    def sign_up(self) -> Account:
        """Make an account that nobody else has."""
        email = f"user-{os.getpid()}-{next(_numbers)}@example.com"
        body = {"email": email, "password": PASSWORD, "name": "Somebody"}
        said = self.ask("POST", "/sign-up/email", json=body).raise_for_status().json()
        return Account(said["user"]["id"], email, said["token"])

    def token(self, account: Account) -> str:
        """A new JWT for somebody's session."""
        return str(self.ask("GET", "/token", account.session).raise_for_status().json()["token"])

    def decide(self, account: Account, user_code: str, decision: str = "approve") -> None:
        """Answer a program that waits with this code as its page would: look the code up, then decide."""
        self.ask("GET", "/device", account.session, params={"user_code": user_code}).raise_for_status()
        body = {"userCode": user_code}
        self.ask("POST", f"/device/{decision}", account.session, json=body).raise_for_status()

    def stop(self) -> None:
        """End it, and with it every account, session and key."""
        self.process.terminate()
        self.process.wait(timeout=30)


def _node_version() -> int:
    """The major version of this machine's Node.js, 0 where there is none."""
    if not shutil.which("node"):
        return 0
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)  # noqa: S607 - as below
    return int(said.stdout.removeprefix("v").partition(".")[0])


def install(cache: Path, place: Path) -> None:
    """Copy the example to `place`, with the packages that it wants; they stay in `cache` for the next run."""
    if _node_version() < NODE_MIN or not shutil.which("npm"):
        missing(f"Node.js {NODE_MIN} or newer and npm are not installed (Debian: nodejs, npm)")
    shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("node_modules"))
    packages = cache / hashlib.sha256((EXAMPLE / "package-lock.json").read_bytes()).hexdigest()[:12]
    packages.mkdir(exist_ok=True)
    with (packages / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (packages / "complete").exists():
            _install_packages(packages)
    (place / "node_modules").symlink_to(packages / "node_modules")


def _install_packages(packages: Path) -> None:
    for name in (".npmrc", "package.json", "package-lock.json"):
        shutil.copy(EXAMPLE / name, packages)
    done = subprocess.run(
        ["npm", "ci"],  # noqa: S607 - whichever npm this machine has
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        missing(f"npm ci could not install Better Auth: {done.stderr.strip()[-300:]}")
    (packages / "complete").touch()


def start(place: Path, folder: Path, **variables: str) -> BetterAuth:
    """Start the example that is installed in `place`, and wait until it is ready; `stop` must follow."""
    log = folder / "better-auth"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["node", "server.js"],  # noqa: S607 - whichever node this machine has
            cwd=place,
            env={"PATH": os.environ["PATH"], "PORT": "0"} | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def said() -> re.Match[str] | None:
        return re.search(r"^Ready at (\S+)", log.read_text(), re.MULTILINE)

    with suppress(AssertionError):
        until(lambda: said() or process.poll() is not None, seconds=60)
    if (ready := said()) is None:
        process.kill()
        process.wait()
        raise AssertionError(f"Better Auth was not ready: {log.read_text()}")
    path = urlsplit(variables.get("BETTER_AUTH_URL", "")).path
    return BetterAuth(ready[1], path or "/api/auth", process, log)


@dataclass
class Login:
    """A `taskctl login` that waits for somebody to confirm its code."""

    url: str
    """Where it sends people; the code is filled in there."""
    user_code: str
    process: subprocess.Popen[str]

    def end(self) -> tuple[int, str]:
        """Wait until it has noticed what was decided; its exit code, and what it said then."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def waiting_login(server: str, auth_url: str, environ: Mapping[str, str]) -> Iterator[Login]:
    """Start `taskctl login`, and wait until it has shown its code."""
    command = [sys.executable, "-m", "taskctl", "login", "--server", server, "--auth-url", auth_url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, text=True
    ) as process:
        try:
            assert process.stderr
            said = ""
            while not (shown := re.search(r"^Open  (\S+)\n.* code  (\S+)\n", said, re.MULTILINE)):
                line = process.stderr.readline()
                assert line, f"it ended: {said}"
                said += line
            yield Login(shown[1], shown[2], process)
        finally:
            process.kill()
