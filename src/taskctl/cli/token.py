"""`taskctl token`: make tokens, look into them, check them."""

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskctl.cli import output
from taskctl.errors import SettingsInvalid, UsageInvalid
from taskctl.vocabulary import Scope

if TYPE_CHECKING:
    from taskctl.tokens import Report

_TIMES = ("exp", "iat", "nbf")

_TAKE_NO_TOKEN = {"allow_extra_args": True}
"""Typer's own refusal of an argument repeats it, and it may be a token."""

app = typer.Typer(
    help="Make, inspect and verify tokens. The secret comes from the settings, a token from stdin.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def mint(
    subject: Annotated[str, typer.Option("--sub", metavar="USER", help="The user id: the `sub` claim.")],
    *,
    expires: Annotated[str, typer.Option(metavar="DURATION", help="Such as 90s, 15m, 1h or 7d.")] = "1h",
    scope: Annotated[
        str | None,
        typer.Option(metavar="SCOPE", help="What it may do, such as 'tasks:read'; else everything."),
    ] = None,
    claim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A further claim; VALUE is JSON or text.")
    ] = None,
) -> None:
    """Sign a token and print it.

    It is signed with BETTER_AUTH_SECRET, in development with the kept secret where that is not set.
    """
    from taskctl.config import ServerSettings
    from taskctl.quantities import seconds
    from taskctl.tokens import mint as sign
    from taskctl.tokens import valid_subject

    if not valid_subject(subject):
        raise UsageInvalid("--sub takes 1 to 255 characters without control characters.")
    try:
        lifetime = seconds(expires)
    except ValueError:
        raise UsageInvalid(f"--expires {expires!r} is not a duration such as 90s, 15m, 1h or 7d.") from None
    settings = ServerSettings.load()
    settings.check_trust()
    secret = settings.with_kept_secret().secret
    if secret is None:  # only a key set is trusted
        raise SettingsInvalid("BETTER_AUTH_SECRET is not set")
    claims = dict(_claim(each) for each in claim or [])
    if "sub" in claims:
        raise UsageInvalid("--claim cannot set `sub`: that is what --sub is for.")
    if scope is not None and not set(scope.split()) <= set(Scope):
        raise UsageInvalid(f"--scope {scope!r} is none of {', '.join(Scope)}, or several with spaces.")
    typer.echo(sign(secret.get_secret_value(), subject, lifetime, scope=scope, claims=claims))


@app.command(context_settings=_TAKE_NO_TOKEN)
def inspect(context: typer.Context, as_json: output.Json = False) -> None:
    """Explain the token on stdin.

    Decodes it and says, check by check, whether a server with these settings takes it.
    """
    report = _examine(context)
    if as_json:
        output.print_json(output.compact(_as_dict(report)))
        return
    for title, part in (("header", report.header), ("claims", report.claims)):
        for name, value in part.items():
            text = json.dumps(value, ensure_ascii=False)
            when = f"   {_moment(value)}" if title == "claims" and name in _TIMES else ""
            typer.echo(output.escaped(f"{title}  {name} = {text}{when}"))
    for check in report.checks:
        if not check.reached:
            typer.echo(f"  -     {check.name}: not reached")
        elif check.error:
            typer.echo(output.escaped(f"  FAIL  {check.name}: {check.error.detail} ({check.error.code})"))
        else:
            typer.echo(f"  ok    {check.name}")
    typer.echo(f"refused: {report.error.code}" if report.error else "accepted")


@app.command(context_settings=_TAKE_NO_TOKEN)
def verify(context: typer.Context) -> None:
    """Check the token on stdin.

    Exits 0 where a server with these settings takes it, else 4.
    """
    report = _examine(context)
    if report.error:
        raise report.error
    output.note("accepted")


def _examine(context: typer.Context) -> "Report":
    if context.args:
        raise UsageInvalid("A token is read from stdin only; pipe it in.")
    import asyncio

    from taskctl.config import ServerSettings
    from taskctl.tokens import create_verifier

    settings = ServerSettings.load()
    settings.check_trust()
    if sys.stdin.isatty():
        output.note("Paste the token, then press Enter and Ctrl-D.")
    token = sys.stdin.read().strip()
    if not token:
        raise UsageInvalid("There is no token on stdin.")
    verifier = create_verifier(settings.with_kept_secret())
    asyncio.run(verifier.fetch_keys_for(token))
    return verifier.examine(token)


def _as_dict(report: "Report") -> dict[str, Any]:
    return {
        "accepted": report.error is None,
        "code": report.error and report.error.code,
        "header": report.header,
        "claims": report.claims,
        "checks": [
            {
                "name": check.name,
                "passed": (check.error is None) if check.reached else None,
                "code": check.error and check.error.code,
                "detail": check.error and check.error.detail,
            }
            for check in report.checks
        ],
    }


def _claim(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageInvalid(f"--claim {text!r} is not NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _moment(value: object) -> str:
    """A NumericDate as people read it, or nothing where it is none."""
    try:
        return datetime.fromtimestamp(float(value), UTC).isoformat(" ", "seconds")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
