"""`taskctl token`: make tokens and the keys that sign them, look into tokens, check them."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskctl import strict_json
from taskctl.cli import output
from taskctl.errors import SettingsInvalid, UsageInvalid
from taskctl.vocabulary import Algorithm, Scope

if TYPE_CHECKING:
    from taskctl.signing_keys import SigningKey
    from taskctl.tokens import Report

_TIMES = ("exp", "iat", "nbf")

_TAKE_NO_TOKEN = {"allow_extra_args": True}
"""Typer's own refusal of an argument repeats it, and it may be a token."""

app = typer.Typer(
    help="Make, inspect and verify tokens. A secret comes from the settings, a private key from a file, a "
    "token from stdin.",
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
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A further claim, such as aud=NAME; VALUE is JSON or text."),
    ] = None,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option("--alg", help="How to sign; HS256, with a key what suits its kind."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign with the private key in this file.")
    ] = None,
) -> None:
    """Sign a token and print it.

    Without --key it is signed with BETTER_AUTH_SECRET, in development with the kept secret where that is not
    set.
    """
    from taskctl.quantities import seconds
    from taskctl.tokens import mint as sign
    from taskctl.tokens import valid_subject

    if not valid_subject(subject):
        raise UsageInvalid("--sub takes 1 to 255 characters without control characters.")
    try:
        lifetime = seconds(expires)
    except ValueError:
        raise UsageInvalid(f"--expires {expires!r} is not a duration such as 90s, 15m, 1h or 7d.") from None
    claims = dict(_claim(each) for each in claim or [])
    if "sub" in claims:
        raise UsageInvalid("--claim cannot set `sub`: that is what --sub is for.")
    if scope is not None and not set(scope.split()) <= set(Scope):
        raise UsageInvalid(f"--scope {scope!r} is none of {', '.join(Scope)}, or several with spaces.")
    signer = _secret(algorithm) if key is None else _key(key, algorithm)
    typer.echo(sign(signer, subject, lifetime, scope=scope, claims=claims))


@app.command()
def keygen(
    key: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; only its owner can read it.")],
    *,
    algorithm: Annotated[Algorithm, typer.Option("--alg", help="What the key signs with.")] = Algorithm.EdDSA,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a private key that signs tokens, and print its public half.

    The file is PEM (PKCS#8), without a password. The public half is a JSON Web Key; its kid names the key.
    """
    from taskctl.signing_keys import make_key, write_key

    made = make_key(algorithm)
    write_key(made, key, replace=force)
    output.print_json(output.compact(made.public_jwk()))


@app.command()
def jwks(
    keys: Annotated[
        list[Path], typer.Option("--key", metavar="FILE", help="A private key; may be given several times.")
    ],
    algorithm: Annotated[
        Algorithm | None,
        typer.Option("--alg", help="What the keys sign with; what suits their kind, RS256 for RSA."),
    ] = None,
) -> None:
    """Print the public halves of private keys as a key set, for an issuer to publish."""
    from taskctl.signing_keys import key_set

    output.print_json(output.compact(key_set([_key(key, algorithm) for key in keys])))


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
    from taskctl.jws import MAX_TOKEN_BYTES
    from taskctl.tokens import create_verifier

    settings = ServerSettings.load()
    settings.check_trust()
    if sys.stdin.isatty():
        output.note("Paste the token, then press Enter and Ctrl-D.")
    token = sys.stdin.buffer.read(2 * MAX_TOKEN_BYTES).decode("utf-8", "replace").strip()
    if not token:
        raise UsageInvalid("There is no token on stdin.")
    verifier = create_verifier(settings.with_kept_secret())
    asyncio.run(verifier.fetch_keys_for(token))
    return verifier.examine(token)


def _secret(algorithm: Algorithm | None) -> str:
    """The secret that the settings sign with."""
    from taskctl.config import ServerSettings

    if algorithm not in {None, Algorithm.HS256}:
        raise UsageInvalid(f"--alg {algorithm} needs a private key: --key FILE.")
    settings = ServerSettings.load()
    settings.check_trust()
    secret = settings.with_kept_secret().secret
    if secret is None:  # only a key set is trusted
        raise SettingsInvalid(
            "BETTER_AUTH_SECRET is not set: there is no secret to sign with; --key FILE takes a key"
        )
    return secret.get_secret_value()


def _key(file: Path, algorithm: Algorithm | None) -> "SigningKey":
    from taskctl.signing_keys import read_key

    if "-----BEGIN" in str(file):  # and is not repeated
        raise UsageInvalid("--key takes the name of a file, never the key itself.")
    return read_key(file, algorithm)


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
        return name, strict_json.loads(value)
    except ValueError:
        return name, value


def _moment(value: object) -> str:
    """A NumericDate as people read it, or nothing where it is none."""
    try:
        return datetime.fromtimestamp(float(value), UTC).isoformat(" ", "seconds")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
