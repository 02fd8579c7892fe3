"""`taskctl doctor`: walk from this machine to the tasks, and say what is wrong first."""

import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import typer

from taskctl import claims, contexts
from taskctl.answers import Answer, unexpected
from taskctl.cli import output
from taskctl.cli.output import Form, Json
from taskctl.errors import (
    ClockWrong,
    RouteNotFound,
    ServerTimedOut,
    ServerUnreachable,
    TaskctlError,
)

SKEW_MAX = 30.0
"""Seconds that clocks may differ: what a server allows unless told otherwise."""

_WAY = ("server reachable", "TLS", "taskctl server", "clock", "ready", "token present")
_TOKEN = (
    "well-formed",
    "algorithm",
    "key known",
    "signature",
    "subject",
    "expiry",
    "not before",
    "issuer",
    "audience",
)
"""What a server checks of a token, in its order: what comes before a failure has passed."""
_TASKS = ("path", "scope", "tasks")

_STEP_OF: Mapping[str, str] = {
    "token_missing": "token present",
    "token_malformed": "well-formed",
    "token_algorithm_not_allowed": "algorithm",
    "token_key_unknown": "key known",
    "auth_keys_unavailable": "key known",
    "token_signature_invalid": "signature",
    "token_expired": "expiry",
    "token_not_yet_valid": "not before",
    "token_issuer_wrong": "issuer",
    "token_audience_wrong": "audience",
    "not_your_tasks": "path",
    "insufficient_scope": "scope",
}
_CLAIM_STEPS = {"sub": "subject", "exp": "expiry", "iss": "issuer", "aud": "audience"}

_ADVICE: Mapping[str, str] = {
    "server_unreachable": "See whether the server runs and whether its URL is right: `taskctl status`.",
    "server_timed_out": "See whether a firewall or proxy holds the connection up.",
    "certificate": "Use the name that the certificate is for; a private authority goes into SSL_CERT_FILE.",
    "tls": "See whether the server speaks TLS at this port; if it speaks plain HTTP, say http:// in the URL.",
    "unexpected_answer": "Give the root URL of a taskctl server; proxies have to pass /health on.",
    "not_ready": "Ask who runs the server: its log says why, and so may `taskctl db check` there.",
    "database_unavailable": "Ask who runs the server: it does not reach its database.",
    "clock_wrong": "Set this machine's clock, or the server's.",
    "not_logged_in": "Log in with `taskctl login`.",
    "token_malformed": (
        "Log in with --auth-url: what an auth server hands out at a login is not yet a token for the API. If "
        "it is a claim, mend what makes the token."
    ),
    "token_algorithm_not_allowed": (
        "Tokens that Better Auth issues need BETTER_AUTH_URL at the server, those signed with a secret "
        "BETTER_AUTH_SECRET."
    ),
    "token_key_unknown": "Log in at the auth server that BETTER_AUTH_URL names at the server.",
    "auth_keys_unavailable": "Ask who runs the server: it cannot get the keys that BETTER_AUTH_URL leads to.",
    "token_signature_invalid": (
        "Get a new token, signed with what the server has in BETTER_AUTH_SECRET, or with a key that the "
        "issuer publishes."
    ),
    "token_claim_missing": "Get a token that has the claim which is missing.",
    "token_expired": "Log in again; through --auth-url tokens are renewed by themselves.",
    "token_not_yet_valid": "Set the clock of whatever signed the token.",
    "token_issuer_wrong": "Log in elsewhere, or have the token's issuer in TASKCTL_JWT_ISSUERS.",
    "token_audience_wrong": "Let the server have the token's audience in TASKCTL_JWT_AUDIENCES.",
    "insufficient_scope": "Get a token whose `scope` has tasks:read, and tasks:write to change tasks.",
    "rate_limited": "Wait a little.",
}
_OTHERWISE = "Look the code up in docs/errors.md; a request id finds the reason in the server's log."


class _Step(NamedTuple):
    """One step: `passed`, `failed` or `not_reached`, and what is known about it."""

    name: str
    result: str = "not_reached"
    detail: str = ""


class _Walk:
    """How far it went: steps by name, in order, and the errors of those that failed."""

    def __init__(self) -> None:
        self.steps = {name: _Step(name) for name in (*_WAY, *_TOKEN, *_TASKS)}
        self.errors: dict[str, TaskctlError] = {}

    def passed(self, name: str, detail: str = "") -> None:
        self.steps[name] = _Step(name, "passed", detail)

    def failed(self, name: str, error: TaskctlError) -> None:
        self.steps[name] = _Step(name, "failed", error.detail)
        self.errors[name] = error

    @property
    def first(self) -> TaskctlError | None:
        """What is wrong first."""
        return next((self.errors[name] for name in self.steps if name in self.errors), None)

    @property
    def advice(self) -> str | None:
        """What to do about it."""
        if self.first is None:
            return None
        if isinstance(self.first.__cause__, ssl.SSLError):
            certificate = isinstance(self.first.__cause__, ssl.SSLCertVerificationError)
            return _ADVICE["certificate" if certificate else "tls"]
        return _ADVICE.get(self.first.code, _OTHERWISE)


def register(app: typer.Typer) -> None:
    """Add the command of this module to the root."""
    app.command()(doctor)


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Find out why something does not work.

    Goes step by step from the server over the clock to the token, and says what is wrong first and what to
    do about it. In a pipe a step is one line: name, result (passed, failed or not_reached), detail.
    """
    how = output.form(as_json=as_json, ndjson=False, quiet=False)
    flags: contexts.Flags = context.find_root().obj
    settings = contexts.resolve(flags)
    walk = _Walk()
    if _go_to_server(walk, settings, debug=flags.debug):
        _go_to_tasks(walk, settings, debug=flags.debug)
    error = walk.first
    if how is Form.JSON:
        report = {
            "context": settings.context,
            "server": settings.server,
            "steps": [step._asdict() for step in walk.steps.values()],
            "code": error and error.code,
            "advice": walk.advice,
        }
        output.print_json(output.compact(report))
    elif how is Form.TERMINAL:
        for step in walk.steps.values():
            mark = {"passed": "ok", "failed": "FAIL", "not_reached": "-"}[step.result]
            detail = "not reached" if step.result == "not_reached" else step.detail
            typer.echo(output.escaped(f"  {mark:<4}  {step.name}" + (f": {detail}" if detail else "")))
    else:
        for step in walk.steps.values():
            typer.echo("\t".join(map(output.escaped, step)))
    if error is not None:
        if how is not Form.JSON:
            typer.echo(f"What to do: {walk.advice}", err=True)
        raise error


def _go_to_server(walk: _Walk, settings: contexts.ClientSettings, *, debug: bool) -> bool:
    """Reach the server and compare clocks; whether it is worth while to go on."""
    from taskctl.transport import Transport

    on_try = output.show_try if debug else None
    transport = Transport(settings.server, timeout=settings.timeout, on_try=on_try)
    secure = settings.server.startswith("https:")
    try:
        started = time.time()
        try:
            answer = transport.send("GET", "/health", once=True)
        except (ServerUnreachable, ServerTimedOut) as error:
            if not isinstance(error.__cause__, ssl.SSLError):
                walk.failed("server reachable", error)
                return False
            walk.passed("server reachable")
            walk.failed("TLS", error)
            return False
        except TaskctlError as error:
            _pass_connection(walk, settings.server, secure=secure)
            walk.failed("taskctl server", error)
            return False
        _pass_connection(walk, settings.server, secure=secure)
        version = answer.json.get("version") if isinstance(answer.json, dict) else None
        if not isinstance(version, str):
            walk.failed("taskctl server", unexpected(settings.server, "JSON that names no version"))
            return False
        walk.passed("taskctl server", f"version {version}")
        _compare_clocks(walk, answer, started)
        try:
            transport.send("GET", "/readyz", once=True)
        except TaskctlError as error:
            walk.failed("ready", error)
            return False
        walk.passed("ready")
    finally:
        transport.close()
    return True


def _pass_connection(walk: _Walk, server: str, *, secure: bool) -> None:
    walk.passed("server reachable", server)
    walk.passed("TLS", "the certificate is trusted" if secure else "not used")


def _compare_clocks(walk: _Walk, answer: Answer, started: float) -> None:
    """Compare the answer's Date (RFC 9110, section 6.6.1) with this machine's clock."""
    try:
        theirs = parsedate_to_datetime(str(answer.headers.get("Date"))).timestamp()
    except (ValueError, OverflowError):
        walk.passed("clock", "the server does not tell its time")
        return
    # It was read between the two, and tells whole seconds.
    ahead = max(0.0, started - theirs - 1) + min(0.0, time.time() - theirs)
    if abs(ahead) <= SKEW_MAX:
        walk.passed("clock", f"within {max(1, round(abs(ahead)))} s of the server's")
        return
    word = "ahead of" if ahead > 0 else "behind"
    walk.failed("clock", ClockWrong(f"This machine's clock is {abs(ahead):.0f} s {word} the server's."))


def _go_to_tasks(walk: _Walk, settings: contexts.ClientSettings, *, debug: bool) -> None:
    """Show the token to the server, and take from its answer how far the token got there."""
    try:
        settings.require_token()
        left = claims.seconds_left(settings.token)
        if settings.session is not None and left is not None and left < SKEW_MAX:
            from taskctl import better_auth

            on_try = output.show_try if debug else None
            settings = settings._replace(token=better_auth.renew(settings, settings.session, on_try=on_try))
    except TaskctlError as error:
        walk.failed("token present", error)
        return
    renewed_by = f", renewed by {settings.session.auth_url}" if settings.session else ""
    walk.passed("token present", (f"context {settings.context}" if settings.context else "") + renewed_by)
    with output.connect(settings, debug=debug) as client:
        try:
            who: Mapping[str, Any] = {}
            try:
                who = client.me()
            except RouteNotFound:
                pass  # an older server: the tasks will tell
            else:
                _pass_token(walk, client.token, who)
            client.list_tasks(limit=1)
        except TaskctlError as error:
            _fail_token(walk, client.token, error)
        else:
            if not who:
                _pass_token(walk, client.token, who)
            for name in _TASKS:
                walk.passed(name)
            if isinstance(scopes := who.get("scopes"), list):
                walk.passed("scope", " ".join(map(str, scopes)))


def _fail_token(walk: _Walk, token: str | None, error: TaskctlError) -> None:
    """Let the step fail that the server's code stands for, and those before it pass."""
    step = _STEP_OF.get(error.code, "tasks")
    said = claims.unverified(token)
    if error.code == "token_claim_missing":
        missing = (step for claim, step in _CLAIM_STEPS.items() if said.get(claim) in (None, ""))
        step = next(missing, "audience")
    if step in _TOKEN:
        for name in _TOKEN[: _TOKEN.index(step)]:
            walk.passed(name)
    elif step in {"path", "scope"}:
        _pass_token(walk, token, {})
        for name in _TASKS[: _TASKS.index(step)]:
            walk.passed(name)
    walk.failed(step, error)


def _pass_token(walk: _Walk, token: str | None, who: Mapping[str, Any]) -> None:
    """Let all steps of the token pass; the server vouches for what the token says."""
    said, expiry = claims.unverified(token), claims.expires_at(token)
    audience, vouching = said.get("aud"), who.get("verified_by")
    trust = vouching.get("trust") if isinstance(vouching, dict) else None
    details = {
        "algorithm": claims.header(token).get("alg"),
        "key known": claims.header(token).get("kid"),
        "signature": {"secret": "by the server's secret", "key_set": "by the issuer's key"}.get(str(trust)),
        "subject": who.get("user_id") or said.get("sub"),
        "expiry": expiry and datetime.fromtimestamp(expiry).astimezone().isoformat(" ", "seconds"),
        "issuer": said.get("iss"),
        "audience": " ".join(map(str, audience)) if isinstance(audience, list) else audience,
    }
    for name in _TOKEN:
        detail = details.get(name)
        walk.passed(name, "" if detail is None else str(detail))
