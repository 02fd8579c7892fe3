"""Whose tokens the server trusts: the settings of secrets and of key sets, and what follows from them."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, field_validator

from taskctl.errors import SettingsInvalid
from taskctl.setting import Names, Seconds, Secrets, Switch, lower, read, setting
from taskctl.signing_secret import kept_secret, weak_secret
from taskctl.vocabulary import MIN_SECRET_BYTES, Environment

_DAY = 86_400.0
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[!-~]+")
_AUTH_PATH = "/api/auth"
"""Where Better Auth answers unless its URL has a path of its own."""


class TrustSettings(BaseModel):
    """Secrets that sign HS256 tokens, and the issuer whose published keys sign the others."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    environment: Annotated[Environment, read(lower)] = setting(
        "TASKCTL_ENV",
        Environment.dev,
        expects="dev, test or prod",
        description="The profile that the other defaults follow.",
    )
    data_dir: Path = setting(
        "TASKCTL_DATA_DIR",
        ...,
        expects="a directory",
        shown="the platform's data directory",
        description="Holds the embedded PostgreSQL and the kept development secret.",
    )
    secret: SecretStr | None = setting(
        "BETTER_AUTH_SECRET",
        None,
        expects=f"at least {MIN_SECRET_BYTES} random bytes",
        shown="a kept secret (dev); in test and prod this or `BETTER_AUTH_URL` is required",
        description="Signs and verifies HS256 tokens, as UTF-8 bytes.",
    )
    previous_secrets: Secrets = setting(
        "BETTER_AUTH_SECRET_PREVIOUS",
        (),
        expects="comma-separated secrets",
        description="Comma-separated secrets that still verify, while a new one is rolled out.",
    )
    better_auth_url: str | None = setting(
        "BETTER_AUTH_URL",
        None,
        expects="a URL such as https://app.example.com",
        description="Better Auth's own URL. Its published keys (at `/api/auth/jwks`, or at `/jwks` below the "
        "URL's path) verify the tokens that it issues; their `iss` and `aud` are the URL's origin.",
    )
    jwks_url: str | None = setting(
        "TASKCTL_JWKS_URL",
        None,
        expects="a URL such as https://app.example.com/api/auth/jwks",
        shown="follows from `BETTER_AUTH_URL`",
        description="Where the key set is fetched, if not there.",
    )
    jwks_allow_http: Switch = setting(
        "TASKCTL_JWKS_ALLOW_HTTP",
        False,
        expects="on or off",
        shown="off",
        description="Fetches the key set without TLS from another host than this one; for a network of "
        "your own.",
    )
    jwks_max_age: Seconds = setting(
        "TASKCTL_JWKS_MAX_AGE",
        300.0,
        expects="seconds from 1 to 86400",
        within=(1, _DAY),
        shown="5 min",
        description="How old the fetched keys may become; they are fetched again before that.",
    )
    jwks_max_stale: Seconds = setting(
        "TASKCTL_JWKS_MAX_STALE",
        _DAY,
        expects="seconds from 1 to 2592000 (30d)",
        within=(1, 30 * _DAY),
        shown="24 h",
        description="How old they may become while the issuer cannot be reached; then 503 "
        "`auth_keys_unavailable`.",
    )
    jwt_issuers: Names = setting(
        "TASKCTL_JWT_ISSUERS",
        (),
        expects="comma-separated issuers",
        shown="`BETTER_AUTH_URL`'s origin, for the tokens that its keys verify",
        description="Accepted `iss` claims, comma-separated; when set, every token must carry one.",
    )
    jwt_audiences: Names = setting(
        "TASKCTL_JWT_AUDIENCES",
        (),
        expects="comma-separated audiences",
        shown="`BETTER_AUTH_URL`'s origin, for the tokens that its keys verify",
        description="Accepted `aud` claims, comma-separated; when set, every token must carry one.",
    )
    jwt_leeway: Seconds = setting(
        "TASKCTL_JWT_LEEWAY",
        30.0,
        expects="seconds from 0 to 600",
        within=(0, 600),
        shown="30 s",
        description="Clock difference allowed when a token's times are checked.",
    )

    @field_validator("secret", "previous_secrets")
    @classmethod
    def _utf8(cls, value: Any) -> Any:
        for secret in value if isinstance(value, tuple) else (value,):
            try:
                (secret.get_secret_value() if secret else "").encode()
            except UnicodeEncodeError:
                raise ValueError("is not UTF-8") from None
        return value

    @field_validator("better_auth_url", "jwks_url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        url = url.strip()
        try:
            parts = urlsplit(url)
            if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.port == 0:
                raise ValueError  # noqa: TRY301 - one sentence for all that is no such URL
        except ValueError:
            raise ValueError("not an http or https URL") from None
        if not _VISIBLE.fullmatch(url):
            raise ValueError("holds a space or another character that is not visible ASCII")
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("holds a user, a password or a fragment")
        return url

    @field_validator("better_auth_url")
    @classmethod
    def _base(cls, url: str | None) -> str | None:
        if url is not None and "?" in url:
            raise ValueError("holds a query")
        return url and url.rstrip("/")

    @property
    def key_set_url(self) -> str | None:
        """Where the key set is; None where only secrets are trusted."""
        if self.jwks_url is not None or self.better_auth_url is None:
            return self.jwks_url
        path = urlsplit(self.better_auth_url).path
        return f"{self.better_auth_url}{'' if path else _AUTH_PATH}/jwks"

    @property
    def key_set_is_local(self) -> bool:
        """Whether the key set is on this machine."""
        return is_loopback(urlsplit(self.key_set_url or "").hostname or "")

    @property
    def key_set_issuers(self) -> Sequence[str]:
        """The `iss` claims of tokens that the key set verifies."""
        return self.jwt_issuers or self._own_origin()

    @property
    def key_set_audiences(self) -> Sequence[str]:
        """The `aud` claims of tokens that the key set verifies."""
        return self.jwt_audiences or self._own_origin()

    def check_trust(self) -> None:
        """Refuse a key set that cannot be trusted, and outside development no trust at all or a weak secret.

        Raises:
            SettingsInvalid: says what to set.
        """
        self._check_key_set()
        if self.environment is Environment.dev:
            return
        if self.secret is None and self.key_set_url is None:
            raise SettingsInvalid(
                "BETTER_AUTH_SECRET is not set, nor is BETTER_AUTH_URL: outside development one of them says "
                f"whose tokens are accepted, a secret of at least {MIN_SECRET_BYTES} bytes "
                "(`openssl rand -base64 32` makes one) or the URL of a Better Auth that publishes its keys"
            )
        for name, secret in self._secrets():
            weakness = weak_secret(secret.get_secret_value())
            if weakness:
                raise SettingsInvalid(f"{name} {weakness}; `openssl rand -base64 32` makes a good one")

    def with_kept_secret(self) -> Self:
        """In development, these settings with the secret that the data directory keeps, made if need be.

        It signs where no other secret is set, and always verifies. Elsewhere the settings are unchanged.

        Raises:
            SettingsInvalid: the data directory cannot hold it.
        """
        if self.environment is not Environment.dev:
            return self
        kept = SecretStr(kept_secret(self.data_dir))
        if self.secret is None:
            return self.model_copy(update={"secret": kept})
        return self.model_copy(update={"previous_secrets": (*self.previous_secrets, kept)})

    def weak_secrets(self) -> list[str]:
        """A sentence on each secret that only development puts up with."""
        weaknesses = [(name, weak_secret(secret.get_secret_value())) for name, secret in self._secrets()]
        return [f"{name} {weakness}; production refuses it" for name, weakness in weaknesses if weakness]

    def _check_key_set(self) -> None:
        if self.key_set_url is None:
            return
        name = "BETTER_AUTH_URL" if self.jwks_url is None else "TASKCTL_JWKS_URL"
        insecure = urlsplit(self.key_set_url).scheme == "http" and not self.key_set_is_local
        if insecure and not self.jwks_allow_http:
            raise SettingsInvalid(
                f"{name} is wrong: keys that come without TLS could be anybody's; it takes an https:// URL, "
                "or TASKCTL_JWKS_ALLOW_HTTP=on in a network of your own"
            )
        for variable, names in (
            ("TASKCTL_JWT_ISSUERS", self.key_set_issuers),
            ("TASKCTL_JWT_AUDIENCES", self.key_set_audiences),
        ):
            if not names:
                raise SettingsInvalid(
                    f"{variable} is not set: with TASKCTL_JWKS_URL alone nothing says which tokens of that "
                    "issuer are meant for this server; set it, or BETTER_AUTH_URL"
                )

    def _own_origin(self) -> Sequence[str]:
        return () if self.better_auth_url is None else (origin(urlsplit(self.better_auth_url)),)

    def _secrets(self) -> list[tuple[str, SecretStr]]:
        current = [("BETTER_AUTH_SECRET", self.secret)] if self.secret else []
        return current + [("BETTER_AUTH_SECRET_PREVIOUS", secret) for secret in self.previous_secrets]


def origin(url: SplitResult) -> str:
    """A URL's origin as browsers and Better Auth write it: lower case, without a default port."""
    host = (url.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = "" if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{host}{port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")
