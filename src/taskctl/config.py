"""The server's settings: read once from the environment and `.env`, checked, and passed down.

`ServerSettings.load()` is the only place that looks at the environment. Nothing here is a module global.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import PrivateAttr, SecretStr, ValidationError, ValidationInfo, field_validator

from taskctl.errors import SettingsInvalid
from taskctl.setting import (
    CLIENT_VARIABLES,
    OURS,
    Bytes,
    LogFormat,
    LogLevel,
    Metrics,
    Names,
    OnError,
    PreparedStatements,
    RateLimits,
    Seconds,
    Switch,
    default_data_dir,
    explain,
    lower,
    read,
    read_env_file,
    setting,
)
from taskctl.trust import TrustSettings
from taskctl.vocabulary import HEARTBEAT_MAX, QUOTA_MAX, Environment

_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_MIN_METRICS_TOKEN = 16


class ServerSettings(TrustSettings):
    """What `taskctl serve`, `db` and `token` go by.

    Every field is one environment variable; `.env` in the working directory may hold the same names, and
    the environment wins. An empty value counts as not set, except for the rate limits. `repr` and `str`
    show no secret.
    """

    database_url: SecretStr | None = setting(
        "DATABASE_URL",
        None,
        expects="a libpq URL such as postgresql://user@host/database",
        shown="the embedded PostgreSQL (dev, test); required in prod",
        description="Where the tasks are. Several hosts are allowed.",
    )
    migration_database_url: SecretStr | None = setting(
        "TASKCTL_MIGRATION_DATABASE_URL",
        None,
        expects="a libpq URL such as postgresql://user@host/database",
        shown="`DATABASE_URL`",
        description="A direct connection for migrations, where a pooler stands in front of the database.",
    )
    host: str = setting(
        "TASKCTL_HOST",
        ...,
        expects="an address to listen on",
        shown="127.0.0.1 (dev, test), 0.0.0.0 (prod)",
        description="The address to listen on.",
    )
    port: int = setting(
        "TASKCTL_PORT",
        8000,
        expects="a port from 0 to 65535 (0: any free one)",
        within=(0, 65535),
        description="The port to listen on.",
    )
    workers: int = setting(
        "TASKCTL_WORKERS",
        1,
        expects="a whole number from 1 to 256",
        within=(1, 256),
        description="How many processes serve; more than one are watched over and replaced by another.",
    )
    worker_timeout: Seconds = setting(
        "TASKCTL_WORKER_TIMEOUT",
        30.0,
        expects="seconds from 0.5 to 3600",
        within=(0.5, 3600),
        shown="30 s",
        description="How long one of several workers may do nothing at all before it is killed and replaced.",
    )
    trusted_proxies: Names = setting(
        "TASKCTL_TRUSTED_PROXIES",
        (),
        expects="comma-separated addresses or networks such as 10.0.0.0/8, or `unix`",
        description="Whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: addresses and networks, "
        "comma-separated, and `unix` for whoever connects to `--uds`.",
    )
    drain_delay: Seconds = setting(
        "TASKCTL_DRAIN_DELAY",
        ...,
        expects="seconds from 0 to 600",
        within=(0, 600),
        shown="0 (dev, test), 5 s (prod)",
        description="How long it serves on after SIGTERM, unready, before it stops listening.",
    )
    drain_timeout: Seconds = setting(
        "TASKCTL_DRAIN_TIMEOUT",
        30.0,
        expects="seconds from 0 to 3600",
        within=(0, 3600),
        shown="30 s",
        description="How long requests in flight may take after that, before 503 `shutting_down`.",
    )
    request_timeout: Seconds = setting(
        "TASKCTL_REQUEST_TIMEOUT",
        30.0,
        expects="seconds from 0.1 to 3600",
        within=(0.1, 3600),
        shown="30 s",
        description="How long a client may take to send a request, or to read some of an answer, before its "
        "connection is closed.",
    )
    cors_origins: Names = setting(
        "TASKCTL_CORS_ORIGINS",
        (),
        expects="comma-separated origins such as https://app.example.com",
        description="Origins whose pages may call the API from a browser, comma-separated.",
    )
    docs: Switch = setting(
        "TASKCTL_DOCS",
        ...,
        expects="on or off",
        shown="on (dev, test), off (prod)",
        description="Serves `/docs`, `/redoc` and `/openapi.json`.",
    )
    log_level: Annotated[LogLevel, read(lower)] = setting(
        "TASKCTL_LOG_LEVEL",
        LogLevel.info,
        expects="debug, info, warning or error",
        description="The least important event that is logged.",
    )
    log_format: Annotated[LogFormat, read(lower)] = setting(
        "TASKCTL_LOG_FORMAT",
        ...,
        expects="console or json",
        shown="console (dev, test), json (prod)",
        description="How events are logged.",
    )
    pool_size: int = setting(
        "TASKCTL_POOL_SIZE",
        10,
        expects="a whole number from 1 to 1000",
        within=(1, 1000),
        description="The most connections to the database, per process.",
    )
    pool_timeout: Seconds = setting(
        "TASKCTL_POOL_TIMEOUT",
        1.0,
        expects="seconds from 0.01 to 60",
        within=(0.01, 60),
        shown="1 s",
        description="How long a request waits for a connection before 503.",
    )
    statement_timeout: Seconds = setting(
        "TASKCTL_STATEMENT_TIMEOUT",
        5.0,
        expects="seconds from 0.01 to 600",
        within=(0.01, 600),
        shown="5 s",
        description="How long a statement may run before 503 `statement_timeout`.",
    )
    prepared_statements: Annotated[PreparedStatements, read(lower)] = setting(
        "TASKCTL_PREPARED_STATEMENTS",
        PreparedStatements.auto,
        expects="auto, on or off",
        description="Whether statements are prepared; `auto`: not where a pooler stands in front.",
    )
    pipeline: Switch = setting(
        "TASKCTL_PIPELINE",
        True,
        expects="on or off",
        shown="on",
        description="Requests share connections, in libpq's pipeline mode; never where a pooler stands in "
        "front.",
    )
    streams: int = setting(
        "TASKCTL_STREAMS",
        1000,
        expects="a whole number from 0 to 100000",
        within=(0, 100_000),
        description="The most streams of changes, per process; beyond it 503 `overloaded`.",
    )
    streams_per_user: int = setting(
        "TASKCTL_STREAMS_PER_USER",
        5,
        expects="a whole number from 1 to 10000",
        within=(1, 10_000),
        description="The most streams of one user, per process; beyond it 429 `too_many_streams`.",
    )
    stream_heartbeat: Seconds = setting(
        "TASKCTL_STREAM_HEARTBEAT",
        15.0,
        expects="seconds from 0.1 to 30",
        within=(0.1, HEARTBEAT_MAX),
        shown="15 s",
        description="How long a stream may be silent before a heartbeat is sent on it.",
    )
    stream_poll: Seconds = setting(
        "TASKCTL_STREAM_POLL",
        2.0,
        expects="seconds from 0.05 to 600",
        within=(0.05, 600),
        shown="2 s",
        description="How often a stream looks for changes where PostgreSQL cannot tell of them, as behind a "
        "pooler.",
    )
    max_body: Bytes = setting(
        "TASKCTL_MAX_BODY",
        256 * 1024,
        expects="a size from 1KiB to 100MiB",
        within=(1024, 100 * 1024**2),
        shown="256KiB",
        description="The largest request body; beyond it 413 `body_too_large`.",
    )
    allowed_hosts: Names = setting(
        "TASKCTL_ALLOWED_HOSTS",
        (),
        expects="comma-separated host names such as tasks.example.com or *.example.com",
        shown="any",
        description="Host names that requests may be addressed to, comma-separated; others get 400. "
        "Probes and `/metrics` are exempt.",
    )
    trash_days: int = setting(
        "TASKCTL_TRASH_DAYS",
        30,
        expects="a whole number of days from 0 to 36500",
        within=(0, 36500),
        description="How many days a deleted task can be restored, before it is purged.",
    )
    quota_tasks: int = setting(
        "TASKCTL_QUOTA_TASKS",
        0,
        expects="a whole number from 0",
        within=(0, QUOTA_MAX),
        shown="0: no limit",
        description="How many tasks a user may have outside the trash; beyond it 403 `quota_exceeded`.",
    )
    quota_bytes: Bytes = setting(
        "TASKCTL_QUOTA_BYTES",
        0,
        expects="a size such as 50MiB, or 0",
        within=(0, QUOTA_MAX),
        shown="0: no limit",
        description="How many bytes the texts of these tasks may take; beyond it 403 `quota_exceeded`.",
    )
    changes_days: int = setting(
        "TASKCTL_CHANGES_DAYS",
        30,
        expects="a whole number of days from 0 to 36500",
        within=(0, 36500),
        description="For how many days changes are kept; who has not asked for so long gets 410 "
        "`changes_expired`.",
    )
    purge_interval: Seconds = setting(
        "TASKCTL_PURGE_INTERVAL",
        3600.0,
        expects="seconds from 1 to 86400",
        within=(1, 86400),
        shown="1h",
        description="The longest time between two purges by a server.",
    )
    rate_limit: RateLimits = setting(
        "TASKCTL_RATE_LIMIT",
        ...,
        expects="a limit such as 600/minute or 10/second;600/minute, or nothing",
        shown="600/minute; off in test",
        description="Requests of one user, over all workers; beyond it 429 `rate_limited`. Empty: no limit.",
        may_be_empty=True,
    )
    rate_limit_anonymous: RateLimits = setting(
        "TASKCTL_RATE_LIMIT_ANONYMOUS",
        ...,
        expects="a limit such as 60/minute, or nothing",
        shown="60/minute; off in test",
        description="Requests without a good token from one address (IPv6: one /64); beyond it 429 "
        "`rate_limited`. Empty: no limit.",
        may_be_empty=True,
    )
    rate_limit_storage: SecretStr = setting(
        "TASKCTL_RATE_LIMIT_STORAGE",
        SecretStr("memory://"),
        expects="memory://, redis://host:6379/0, rediss://…, valkey://… or valkeys://…",
        shown="memory://",
        description="Where requests are counted: `memory://` is one `serve` with all its workers; a Redis or "
        "Valkey is shared by replicas, and needs the extra `redis`.",
    )
    rate_limit_on_error: Annotated[OnError, read(lower)] = setting(
        "TASKCTL_RATE_LIMIT_ON_ERROR",
        OnError.memory,
        expects="memory, allow or deny",
        description="While that storage cannot be reached: count in memory, let all pass, or answer 429.",
    )
    metrics: Annotated[Metrics, read(lower)] = setting(
        "TASKCTL_METRICS",
        ...,
        expects="off, open or token",
        shown="open (dev, test), off (prod)",
        description="Who may read `/metrics`: nobody, anybody, or who sends `TASKCTL_METRICS_TOKEN`.",
    )
    metrics_token: SecretStr | None = setting(
        "TASKCTL_METRICS_TOKEN",
        None,
        expects=f"at least {_MIN_METRICS_TOKEN} visible ASCII characters",
        description="The bearer token for `/metrics`, where `TASKCTL_METRICS` is `token`.",
    )
    traces: Annotated[Literal["off", "otlp"], read(lower)] = setting(
        "TASKCTL_TRACES",
        "off",
        expects="off or otlp",
        description="`otlp` sends traces by OTLP/HTTP, as OpenTelemetry's own variables say; needs the extra "
        "`otel`.",
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _unknown: list[str] = PrivateAttr(default_factory=list)

    @field_validator("database_url", "migration_database_url")
    @classmethod
    def _libpq_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("does not start with postgresql://")
        if url is not None and url.get_secret_value().partition("://")[2].partition("/")[0].count("@") > 1:
            # libpq would look for a host by the name of half the password, and say so.
            raise ValueError("holds a second @, which in a password is written %40")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in {"http", "https"}
                or not parts.netloc
                or "@" in parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError("not an origin: scheme, host and port, with no path")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in hosts)
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise ValueError("not host names: no scheme, port or path, and * only in front")
        return hosts

    @field_validator("rate_limit_storage")
    @classmethod
    def _storage(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() == "memory://":
            return url
        try:
            parts = urlsplit(url.get_secret_value())
            known = parts.scheme in {"redis", "rediss", "valkey", "valkeys"} and parts.hostname and parts.port
        except ValueError:
            known = False
        if not known:
            raise ValueError("not a storage that this server has, with host and port")
        return url

    @field_validator("metrics_token")
    @classmethod
    def _metrics_token(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if token is None:
            if info.data.get("metrics") is Metrics.token:
                raise ValueError("it is not set, and TASKCTL_METRICS is token")
        elif not re.fullmatch(rf"[!-~]{{{_MIN_METRICS_TOKEN},}}", token.get_secret_value()):
            raise ValueError("too short, or with a space or another character that is not visible ASCII")
        return token

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                if proxy != "unix":
                    ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError("neither an address nor a network") from None
        return proxies

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        flags: Mapping[str, str] | None = None,
        env_file: Path | None = Path(".env"),
    ) -> Self:
        """Read the settings; flags win over the environment, the environment over `env_file`.

        Args:
            environ: the environment; the process's own when left out.
            flags: values given on the command line, by variable name.
            env_file: None to read no file; a file that is not there is no error.

        Raises:
            SettingsInvalid: names each variable that is wrong or missing, and what would be right.
        """
        values: dict[str, str] = {}
        sources: dict[str, str] = {}
        layers = {
            ".env": read_env_file(env_file),
            "environment": os.environ if environ is None else environ,
            "flag": flags or {},
        }
        fields = {str(field.alias): field.json_schema_extra for field in cls.model_fields.values()}
        for source, layer in layers.items():
            for name in fields.keys() & layer.keys():
                extra = fields[name]
                if layer[name].strip() or (isinstance(extra, dict) and extra["may_be_empty"]):
                    values[name], sources[name] = layer[name], source
        environment = values.get("TASKCTL_ENV", "dev").strip().lower()
        try:
            settings = cls.model_validate(_profile(environment) | values)
        except ValidationError as error:
            raise SettingsInvalid("; ".join(explain(cls, error))) from None
        settings._sources.update(sources)  # noqa: SLF001 - its own
        given = set().union(*layers.values()) - fields.keys() - CLIENT_VARIABLES
        settings._unknown.extend(sorted(name for name in given if name.startswith(OURS)))  # noqa: SLF001
        return settings

    def source(self, name: str) -> str:
        """Where the variable's value came from: flag, environment, .env or default."""
        return self._sources.get(name, "default")

    def check_database(self) -> None:
        """Refuse production without a database of its own.

        Raises:
            SettingsInvalid: says what to set.
        """
        if self.environment is Environment.prod and self.database_url is None:
            raise SettingsInvalid(
                "DATABASE_URL is not set: production needs a PostgreSQL of its own, "
                "for instance postgresql://user@host/database"
            )

    def with_database(self, url: str) -> Self:
        """These settings with another database, such as the embedded one once it runs."""
        return self.model_copy(update={"database_url": SecretStr(url)})

    def warnings(self) -> list[str]:
        """What is put up with, but should be looked at: names that no setting has, and weak secrets."""
        names = [str(field.alias) for field in type(self).model_fields.values()]
        found = []
        for unknown in self._unknown:
            close = difflib.get_close_matches(unknown, names, n=1)
            found.append(f"{unknown} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
        return found + self.weak_secrets()


def _profile(environment: str) -> dict[str, Any]:
    production = environment == Environment.prod
    limited = environment != Environment.test
    return {
        "TASKCTL_DATA_DIR": default_data_dir(),
        "TASKCTL_HOST": "0.0.0.0" if production else "127.0.0.1",  # noqa: S104 - a container's port
        "TASKCTL_DRAIN_DELAY": 5.0 if production else 0.0,
        "TASKCTL_DOCS": not production,
        "TASKCTL_LOG_FORMAT": LogFormat.json if production else LogFormat.console,
        "TASKCTL_METRICS": Metrics.off if production else Metrics.open,
        "TASKCTL_RATE_LIMIT": "600/minute" if limited else "",
        "TASKCTL_RATE_LIMIT_ANONYMOUS": "60/minute" if limited else "",
    }
