"""The server's settings: where they come from, what they take, and what they refuse to serve with."""

import os
import stat
import threading
from pathlib import Path

import pytest

from taskctl.config import ServerSettings
from taskctl.errors import SettingsInvalid
from taskctl.signing_secret import EXAMPLE_SECRET, PLACEHOLDERS, kept_secret, weak_secret

STRONG = "c29tZSByYW5kb20gYnl0ZXMgZm9yIGEgdGVzdA=="
DATABASE = "postgresql://alice:hunter2@db.test:5432/tasks"
PROD = {"TASKCTL_ENV": "prod", "DATABASE_URL": DATABASE, "BETTER_AUTH_SECRET": STRONG}
NAMES = {str(field.alias): name for name, field in ServerSettings.model_fields.items()}


def load(flags=None, env_file=None, **environ):
    return ServerSettings.load(environ, flags=flags, env_file=env_file)


def value(settings, name):
    """The value of a variable as the rest of the program sees it."""
    found = getattr(settings, NAMES[name])
    return found.get_secret_value() if hasattr(found, "get_secret_value") else found


def refusal(**environ):
    with pytest.raises(SettingsInvalid) as raised:
        load(**environ)
    return raised.value.detail


@pytest.mark.parametrize(
    ("name", "dev", "test", "prod"),
    [
        ("TASKCTL_ENV", "dev", "test", "prod"),
        ("DATABASE_URL", None, None, None),
        ("TASKCTL_MIGRATION_DATABASE_URL", None, None, None),
        ("BETTER_AUTH_SECRET", None, None, None),
        ("BETTER_AUTH_SECRET_PREVIOUS", (), (), ()),
        ("BETTER_AUTH_URL", None, None, None),
        ("TASKCTL_JWKS_URL", None, None, None),
        ("TASKCTL_JWKS_ALLOW_HTTP", False, False, False),
        ("TASKCTL_JWKS_MAX_AGE", 300, 300, 300),
        ("TASKCTL_JWKS_MAX_STALE", 86_400, 86_400, 86_400),
        ("TASKCTL_JWT_ISSUERS", (), (), ()),
        ("TASKCTL_JWT_AUDIENCES", (), (), ()),
        ("TASKCTL_JWT_LEEWAY", 30, 30, 30),
        ("TASKCTL_HOST", "127.0.0.1", "127.0.0.1", "0.0.0.0"),  # noqa: S104 - what is expected
        ("TASKCTL_PORT", 8000, 8000, 8000),
        ("TASKCTL_CORS_ORIGINS", (), (), ()),
        ("TASKCTL_DOCS", True, True, False),
        ("TASKCTL_LOG_LEVEL", "info", "info", "info"),
        ("TASKCTL_LOG_FORMAT", "console", "console", "json"),
        ("TASKCTL_POOL_SIZE", 10, 10, 10),
        ("TASKCTL_POOL_TIMEOUT", 1, 1, 1),
        ("TASKCTL_STATEMENT_TIMEOUT", 5, 5, 5),
        ("TASKCTL_MAX_BODY", 262_144, 262_144, 262_144),
        ("TASKCTL_ALLOWED_HOSTS", (), (), ()),
        ("TASKCTL_RATE_LIMIT", "600/minute", "", "600/minute"),
        ("TASKCTL_RATE_LIMIT_ANONYMOUS", "60/minute", "", "60/minute"),
        ("TASKCTL_RATE_LIMIT_STORAGE", "memory://", "memory://", "memory://"),
        ("TASKCTL_RATE_LIMIT_ON_ERROR", "memory", "memory", "memory"),
        ("TASKCTL_METRICS", "open", "open", "off"),
        ("TASKCTL_METRICS_TOKEN", None, None, None),
    ],
)
def test_defaults_follow_the_profile(name, dev, test, prod):
    """Each setting has the default that the table of settings gives for the profile."""
    loaded = [load(TASKCTL_ENV=profile) for profile in ("dev", "test", "prod")]
    assert [value(settings, name) for settings in loaded] == [dev, test, prod]
    if name != "TASKCTL_ENV":
        assert {settings.source(name) for settings in loaded} == {"default"}


def test_data_directory_follows_the_platform(monkeypatch, tmp_path):
    """Without a setting, data lies in the platform's data directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load().data_dir == tmp_path / "taskctl"
    assert load(TASKCTL_DATA_DIR="/srv/x").data_dir == Path("/srv/x")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *(("TASKCTL_ENV", text, "prod") for text in ("prod", "PROD", " Prod ")),
        *(
            ("TASKCTL_JWT_LEEWAY", text, 60)
            for text in ("60", "60s", "60 s", "1m", "60000ms", " 60.0 ", "1M")
        ),
        ("TASKCTL_JWT_LEEWAY", "0", 0),
        ("TASKCTL_JWKS_MAX_AGE", "1m", 60),
        ("TASKCTL_JWKS_MAX_STALE", "7d", 604_800),
        ("BETTER_AUTH_URL", " https://app.example.com/ ", "https://app.example.com"),
        ("TASKCTL_JWKS_URL", "https://app.example.com/keys?p=1", "https://app.example.com/keys?p=1"),
        ("TASKCTL_JWT_LEEWAY", "10m", 600),
        ("TASKCTL_STATEMENT_TIMEOUT", "250ms", 0.25),
        ("TASKCTL_POOL_TIMEOUT", "0.5", 0.5),
        *(
            ("TASKCTL_MAX_BODY", text, 1_048_576)
            for text in ("1048576", "1MiB", "1 mib", "1024KiB", "1024 kib")
        ),
        ("TASKCTL_MAX_BODY", "1MB", 1_000_000),
        ("TASKCTL_MAX_BODY", "1.5KiB", 1536),
        ("TASKCTL_MAX_BODY", "2048B", 2048),
        *(("TASKCTL_DOCS", text, True) for text in ("on", "ON", "true", "yes", "1", " on ")),
        *(("TASKCTL_DOCS", text, False) for text in ("off", "False", "no", "0")),
        ("TASKCTL_PORT", "0", 0),
        ("TASKCTL_PORT", "65535", 65535),
        ("TASKCTL_LOG_LEVEL", "WARNING", "warning"),
        ("TASKCTL_LOG_FORMAT", "JSON", "json"),
        ("TASKCTL_JWT_ISSUERS", " a , b,, ", ("a", "b")),
        (
            "TASKCTL_CORS_ORIGINS",
            "https://a.test,http://b.test:3000",
            ("https://a.test", "http://b.test:3000"),
        ),
        (
            "TASKCTL_ALLOWED_HOSTS",
            " Tasks.example.com ,*.b.test,[::1]",
            ("tasks.example.com", "*.b.test", "[::1]"),
        ),
        ("TASKCTL_RATE_LIMIT", " 10/second; 600 per 5 minutes", "10/second; 600 per 5 minutes"),
        *((name, " ", "") for name in ("TASKCTL_RATE_LIMIT", "TASKCTL_RATE_LIMIT_ANONYMOUS")),
        ("DATABASE_URL", "postgres://h1,h2/db?target_session_attrs=read-write", ...),
        ("BETTER_AUTH_SECRET", " kept as it is, comma and all ", ...),
    ],
)
def test_values_are_read_with_their_units(name, text, expected):
    """A value may carry a unit, stand in either case and have white space around it."""
    assert value(load(**{name: text}), name) == (text if expected is ... else expected)


def test_metrics_for_a_token_need_one():
    """Metrics that only a token's bearer may read are refused without the token."""
    assert refusal(TASKCTL_METRICS="token").startswith("TASKCTL_METRICS_TOKEN is wrong")
    assert load(TASKCTL_METRICS="token", TASKCTL_METRICS_TOKEN="x" * 16).metrics == "token"


def test_several_previous_secrets():
    """Previous secrets are separated by commas."""
    settings = load(BETTER_AUTH_SECRET_PREVIOUS="one, two,")
    assert [secret.get_secret_value() for secret in settings.previous_secrets] == ["one", "two"]


NO_URLS = (
    *("app.example.com", "ftp://a.test", "https://", "https://a.test:x", "https://a.test:0", "//a", "x"),
    *("https://u:hunter2@a.test", "https://a.test/#x", "https://a b.test", "https://é.test"),
)
WRONG = {
    "TASKCTL_ENV": ("production", "staging", "hunter2"),
    "DATABASE_URL": ("mysql://u:hunter2@h/d", "host=h password=hunter2", "sqlite:///x"),
    "TASKCTL_MIGRATION_DATABASE_URL": ("http://u:hunter2@h",),
    "TASKCTL_JWT_LEEWAY": ("-1", "601", "soon", "1e1", "30 parsecs", "nan", "inf", "1d", "9" * 400),
    **dict.fromkeys(("BETTER_AUTH_URL", "TASKCTL_JWKS_URL"), NO_URLS),
    "TASKCTL_JWKS_ALLOW_HTTP": ("perhaps",),
    "TASKCTL_JWKS_MAX_AGE": ("0", "2d", "never"),
    "TASKCTL_JWKS_MAX_STALE": ("0", "31d"),
    "TASKCTL_PORT": ("-1", "65536", "http", "80.5", "0x50"),
    "TASKCTL_CORS_ORIGINS": (
        *("*", "a.test", "https://a.test/", "https://a.test/x", "ftp://a.test", "https://", "null"),
        *("https://a.test?x", "https://u:hunter2@a.test", "https://[", "https://a.test https://b.test"),
    ),
    "TASKCTL_DOCS": ("maybe", "2", "onn"),
    "TASKCTL_LOG_LEVEL": ("loud", "trace", "20"),
    "TASKCTL_LOG_FORMAT": ("xml", "logfmt"),
    "TASKCTL_POOL_SIZE": ("0", "1001", "ten", "-5", "2.5"),
    "TASKCTL_POOL_TIMEOUT": ("0", "61", "-1", "1x"),
    "TASKCTL_STATEMENT_TIMEOUT": ("0", "601", "11m", "forever"),
    "TASKCTL_MAX_BODY": ("0", "1023", "101MiB", "big", "1.5", "1GiB", "-1", "1.0001KiB"),
    "TASKCTL_ALLOWED_HOSTS": ("https://a.test", "a.test:80", "a.test/x", "*", "a*.test", "a b.test", "a..b"),
    "TASKCTL_RATE_LIMIT": (
        "0/minute",
        "600",
        "minute",
        "600/",
        "-1/minute",
        "1.5/s",
        "5/fortnight",
        "5/0 hour",
    ),
    "TASKCTL_RATE_LIMIT_ANONYMOUS": ("lots", "60 a minute", "60/minute;", "9999999999/second"),
    "TASKCTL_RATE_LIMIT_STORAGE": (
        "disk://x",
        "redis://",
        "http://u:hunter2@h",
        "memcached://h",
        "memory",
        "redis://h",
        "redis://h:x",
    ),
    "TASKCTL_RATE_LIMIT_ON_ERROR": ("hope", "off"),
    "TASKCTL_METRICS": ("on", "public"),
    "TASKCTL_METRICS_TOKEN": ("hunter2", "hunter2 and some more", "hunter2-and-some-möre"),
    "BETTER_AUTH_SECRET": ("not UTF-8: hunter2 \udcff and then some more bytes",),
    "BETTER_AUTH_SECRET_PREVIOUS": ("not UTF-8: hunter2 \udcff and then some more bytes",),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_wrong_value_is_explained(name, text):
    """A wrong value names its variable and what would be right, and repeats no secret."""
    said = refusal(**{name: text})
    field = ServerSettings.model_fields[NAMES[name]]
    assert said.startswith(f"{name} ")
    assert field.json_schema_extra["expects"] in said
    assert "hunter2" not in said.replace(name, "")
    assert not [other for other in NAMES if other in said and other not in name]
    assert "\n" not in said


def test_every_setting_says_what_it_takes():
    """Each setting has a name of its own, a description, and words for what it expects and its default."""
    assert len(NAMES) == len(ServerSettings.model_fields)
    for field in ServerSettings.model_fields.values():
        assert field.description
        assert set(field.json_schema_extra) >= {"expects", "shown"}


def test_all_wrong_values_are_named_at_once():
    """Who has three wrong settings is told of three."""
    said = refusal(TASKCTL_PORT="http", TASKCTL_DOCS="maybe", DATABASE_URL="mysql://u:hunter2@h/d")
    assert all(name in said for name in ("TASKCTL_PORT", "TASKCTL_DOCS", "DATABASE_URL"))
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("layers", "expected", "source"),
    [
        ("", 8000, "default"),
        ("file", 1, ".env"),
        ("environment", 2, "environment"),
        ("flag", 3, "flag"),
        ("file environment", 2, "environment"),
        ("file flag", 3, "flag"),
        ("file environment flag", 3, "flag"),
    ],
)
def test_precedence(tmp_path, layers, expected, source):
    """A flag wins over the environment, the environment over `.env`, and the source is known."""
    env_file = tmp_path / ".env"
    env_file.write_text("TASKCTL_PORT=1\n" if "file" in layers else "")
    environ = {"TASKCTL_PORT": "2"} if "environment" in layers else {}
    flags = {"TASKCTL_PORT": "3"} if "flag" in layers else None
    settings = load(flags, env_file, **environ)
    assert (settings.port, settings.source("TASKCTL_PORT")) == (expected, source)
    assert settings.source("TASKCTL_HOST") == "default"


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_empty_is_not_set(tmp_path, empty):
    """An empty value counts as not set, in every layer and for every setting but the rate limits."""
    env_file = tmp_path / ".env"
    env_file.write_text("TASKCTL_PORT=1\nTASKCTL_HOST=\n")
    names = [name for name in NAMES if not name.startswith("TASKCTL_RATE_LIMIT")]
    settings = load({"TASKCTL_PORT": empty}, env_file, **dict.fromkeys(names, empty))
    assert (settings.port, settings.source("TASKCTL_PORT")) == (1, ".env")
    assert [name for name in NAMES if settings.source(name) != "default"] == ["TASKCTL_PORT"]


def test_process_environment_and_working_directory(tmp_path, monkeypatch):
    """Left to itself, load reads the process's environment and `.env` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKCTL_PORT", "4")
    monkeypatch.delenv("TASKCTL_HOST", raising=False)
    Path(".env").write_text("TASKCTL_PORT=5\nTASKCTL_HOST=::1\n")
    settings = ServerSettings.load()
    assert (settings.port, settings.host) == (4, "::1")


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("BETTER_AUTH_SECRET=pa$$word${HOME}$HOME", "pa$$word${HOME}$HOME"),
        ("BETTER_AUTH_SECRET='single # $x'", "single # $x"),
        ('BETTER_AUTH_SECRET="double # $x"', "double # $x"),
        ("export BETTER_AUTH_SECRET=exported", "exported"),
        ("BETTER_AUTH_SECRET=a=b==", "a=b=="),
        ("BETTER_AUTH_SECRET=value # comment", "value"),
        ("# BETTER_AUTH_SECRET=x\n\nBETTER_AUTH_SECRET=пароль", "пароль"),
        ("BETTER_AUTH_SECRET=crlf\r\nTASKCTL_PORT=1\r", "crlf"),
        ("\ufeffBETTER_AUTH_SECRET=after a byte order mark", "after a byte order mark"),
        ("BETTER_AUTH_SECRET", None),
        ("UNKNOWN=x\nBETTER_AUTH_SECRET=known", "known"),
    ],
)
def test_env_file_is_read_literally(tmp_path, line, secret):
    """`.env` holds what it holds: a `$` is a `$`, quotes quote, a byte order mark is no part of a name."""
    env_file = tmp_path / ".env"
    env_file.write_bytes(f"{line}\n".encode())
    assert value(load(env_file=env_file), "BETTER_AUTH_SECRET") == secret


def test_env_file_that_is_not_utf8(tmp_path):
    """A `.env` in another encoding is named, and nothing of it is repeated."""
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"BETTER_AUTH_SECRET=hunter2\xff\n")
    with pytest.raises(SettingsInvalid) as raised:
        load(env_file=env_file)
    assert str(env_file) in raised.value.detail
    assert "hunter2" not in raised.value.detail


def test_env_file_may_be_absent(tmp_path):
    """A `.env` that is not there, or is a directory, is no error."""
    assert load(env_file=tmp_path / ".env").port == load(env_file=tmp_path).port == 8000


@pytest.mark.parametrize("show", [repr, str, lambda settings: settings.model_dump_json(), vars], ids="rsjv")
def test_settings_hide_their_secrets(show):
    """Printed settings show neither a secret nor the database's password."""
    settings = load(
        **PROD, BETTER_AUTH_SECRET_PREVIOUS="hunter2-before", TASKCTL_MIGRATION_DATABASE_URL=DATABASE
    )
    shown = str(show(settings))
    assert "hunter2" not in shown
    assert STRONG not in shown


def test_settings_do_not_change():
    """Settings are made once: no later assignment changes them."""
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


@pytest.mark.parametrize(
    ("profile", "missing", "said"),
    [
        ("prod", "DATABASE_URL", "postgresql://"),
        ("prod", "BETTER_AUTH_SECRET", "openssl rand"),
        ("test", "BETTER_AUTH_SECRET", "openssl rand"),
    ],
)
def test_what_only_development_may_lack(profile, missing, said):
    """Outside development a secret is required, in production a database too, and the refusal says how."""
    environ = PROD | {"TASKCTL_ENV": profile, missing: ""}
    settings = load(**environ)
    with pytest.raises(SettingsInvalid, match=f"{missing} is not set.*{said}"):
        check(settings)
    check(load(**environ | {"TASKCTL_ENV": "dev"}))
    check(load(**PROD | {"TASKCTL_ENV": profile}))


def check(settings):
    settings.check_database()
    settings.check_trust()


@pytest.mark.parametrize("profile", ["test", "prod"])
def test_an_issuer_is_trust_enough(profile):
    """Outside development an issuer with published keys takes the place of a secret; both may be."""
    environ = PROD | {"TASKCTL_ENV": profile, "BETTER_AUTH_URL": "https://app.example.com"}
    check(load(**environ))
    check(load(**environ | {"BETTER_AUTH_SECRET": ""}))
    with pytest.raises(SettingsInvalid, match="BETTER_AUTH_SECRET is not set, nor is BETTER_AUTH_URL"):
        check(load(**environ | {"BETTER_AUTH_SECRET": "", "BETTER_AUTH_URL": ""}))
    with pytest.raises(SettingsInvalid, match="BETTER_AUTH_SECRET is a publicly known placeholder"):
        check(load(**environ | {"BETTER_AUTH_SECRET": "changeme"}))


@pytest.mark.parametrize(
    ("url", "jwks", "name"),
    [
        ("https://app.example.com", "https://app.example.com/api/auth/jwks", "https://app.example.com"),
        ("https://app.example.com/", "https://app.example.com/api/auth/jwks", "https://app.example.com"),
        (
            "https://App.Example.com:443",
            "https://App.Example.com:443/api/auth/jwks",
            "https://app.example.com",
        ),
        ("http://localhost:3000", "http://localhost:3000/api/auth/jwks", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000/api/auth/jwks", "http://[::1]:3000"),
        ("https://a.test:8443/api/auth", "https://a.test:8443/api/auth/jwks", "https://a.test:8443"),
        ("https://a.test/sign/in/", "https://a.test/sign/in/jwks", "https://a.test"),
    ],
)
def test_what_follows_from_the_url(url, jwks, name):
    """The key set is below Better Auth's path, issuer and audience are the URL's origin."""
    settings = load(BETTER_AUTH_URL=url)
    check(settings)
    assert settings.key_set_url == jwks
    assert (settings.key_set_issuers, settings.key_set_audiences) == ((name,), (name,))


def test_what_is_set_replaces_what_follows():
    """A key set, issuers and audiences of one's own hold in place of what follows from the URL."""
    own = {
        "TASKCTL_JWKS_URL": "https://keys.example.com/jwks",
        "TASKCTL_JWT_ISSUERS": "a,b",
        "TASKCTL_JWT_AUDIENCES": "c",
    }
    for environ in (own, own | {"BETTER_AUTH_URL": "http://web.internal:3000"}):
        settings = load(**environ)
        check(settings)
        assert settings.key_set_url == "https://keys.example.com/jwks"
        assert (settings.key_set_issuers, settings.key_set_audiences) == (("a", "b"), ("c",))


@pytest.mark.parametrize("profile", ["dev", "test", "prod"])
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BETTER_AUTH_URL": "http://app.example.com"}, "BETTER_AUTH_URL is wrong.*TASKCTL_JWKS_ALLOW_HTTP"),
        (
            {"BETTER_AUTH_URL": "https://a.test", "TASKCTL_JWKS_URL": "http://127.0.0.1.evil.test/"},
            "TASKCTL_JWKS_URL is wrong.*TASKCTL_JWKS_ALLOW_HTTP",
        ),
        ({"TASKCTL_JWKS_URL": "https://a.test/jwks"}, "TASKCTL_JWT_ISSUERS is not set"),
        (
            {"TASKCTL_JWKS_URL": "https://a.test/jwks", "TASKCTL_JWT_ISSUERS": "a"},
            "TASKCTL_JWT_AUDIENCES is not",
        ),
    ],
)
def test_key_set_that_cannot_be_trusted(profile, environ, said):
    """Keys come over TLS or from this machine, and tokens for others are not ours: in every profile."""
    environ = PROD | {"TASKCTL_ENV": profile} | environ
    with pytest.raises(SettingsInvalid, match=said):
        check(load(**environ))
    names = {"TASKCTL_JWT_ISSUERS": "a", "TASKCTL_JWT_AUDIENCES": "a", "TASKCTL_JWKS_ALLOW_HTTP": "on"}
    check(load(**environ | names))


def test_only_production_needs_a_database():
    """The test profile runs on the embedded database."""
    check(load(TASKCTL_ENV="test", BETTER_AUTH_SECRET=STRONG))


WEAK = [
    *(pytest.param(word, "placeholder", id=word) for word in sorted(PLACEHOLDERS)),
    *(pytest.param(word, "placeholder", id=f"{word!a}") for word in (" ChangeMe\n", EXAMPLE_SECRET.upper())),
    pytest.param("x" * 31, "31 bytes", id="31 bytes"),
    pytest.param("é" * 15 + "x", "31 bytes", id="31 bytes in UTF-8"),
]


@pytest.mark.parametrize(("secret", "reason"), WEAK)
@pytest.mark.parametrize("name", ["BETTER_AUTH_SECRET", "BETTER_AUTH_SECRET_PREVIOUS"])
def test_weak_secrets_are_for_development(name, secret, reason):
    """A weak secret, present or previous, is refused outside development and warned of there, unrepeated."""
    environ = {name: secret, "DATABASE_URL": DATABASE}
    [warning] = load(**environ, TASKCTL_ENV="dev").warnings()
    check(load(**environ, TASKCTL_ENV="dev"))
    for profile in ("test", "prod"):
        with pytest.raises(SettingsInvalid, match=rf"^{name} .*{reason}.*openssl rand") as raised:
            check(load(**PROD | environ | {"TASKCTL_ENV": profile}))
        assert f"'{secret}'" not in raised.value.detail
    assert warning.startswith(f"{name} ")
    assert reason in warning


@pytest.mark.parametrize("secret", ["x" * 32, "é" * 16, STRONG])
def test_strong_secrets_are_silent(secret):
    """32 bytes that nobody knows are enough, and not worth a word."""
    settings = load(**PROD | {"BETTER_AUTH_SECRET": secret})
    check(settings)
    assert settings.warnings() == []
    assert weak_secret(secret) is None


@pytest.mark.parametrize(
    "secret",
    [
        "changeme",
        "secret",
        "better-auth-secret-12345678901234567890",
        "replace-me-with-at-least-32-random-bytes",
    ],
)
def test_known_placeholders(secret):
    """What documentation shows is known to be public."""
    assert weak_secret(secret) == "is a publicly known placeholder"


def test_kept_secret_is_made_once_for_its_owner(tmp_path):
    """Development's secret is strong, 0600, and the same for all who ask at the same moment."""
    place = tmp_path / "not" / "there"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(kept_secret(place))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert {*answers, kept_secret(place)} == {answers[0]}
    assert weak_secret(answers[0]) is None
    assert [path.name for path in place.iterdir()] == ["secret"]
    assert stat.S_IMODE((place / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"hunter2", b"\xff" * 40, b"changeme"])
def test_kept_secret_that_is_none(tmp_path, content):
    """A kept secret that was damaged is named and not repeated."""
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SettingsInvalid) as raised:
        kept_secret(tmp_path)
    assert str(tmp_path / "secret") in raised.value.detail
    assert "hunter2" not in raised.value.detail


def test_kept_secret_without_a_place(tmp_path):
    """A data directory that cannot be is a wrong setting."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid):
        kept_secret(tmp_path / "file" / "data")


def test_development_always_has_its_kept_secret(tmp_path):
    """In development the kept secret signs, or verifies beside a configured one; elsewhere there is none."""
    place = {"TASKCTL_DATA_DIR": str(tmp_path / "data")}
    kept = load(**place).with_kept_secret()
    assert kept.secret.get_secret_value() == kept_secret(tmp_path / "data")
    both = load(**place, BETTER_AUTH_SECRET=STRONG, BETTER_AUTH_SECRET_PREVIOUS="old").with_kept_secret()
    assert value(both, "BETTER_AUTH_SECRET") == STRONG
    assert [each.get_secret_value() for each in both.previous_secrets] == [
        "old",
        value(kept, "BETTER_AUTH_SECRET"),
    ]
    assert both.source("BETTER_AUTH_SECRET") == "environment"
    assert both.warnings() == [
        "BETTER_AUTH_SECRET_PREVIOUS is 3 bytes long, at least 32 are required; production refuses it"
    ]
    elsewhere = load(**PROD, TASKCTL_DATA_DIR=os.devnull)
    assert elsewhere.with_kept_secret() == elsewhere


def test_another_database():
    """The embedded database's URL takes its place without touching the original."""
    settings = load()
    assert value(settings.with_database(DATABASE), "DATABASE_URL") == DATABASE
    assert settings.database_url is None


def test_misspelled_names_are_noticed() -> None:
    """A name of ours that no setting has is warned of, with the one that was probably meant."""
    environ = {"TASKCTL_POTR": "1", "TASKCTL_SERVER": "http://x", "PATH": "/bin"}
    settings = ServerSettings.load(environ, env_file=None)
    assert settings.warnings() == ["TASKCTL_POTR is not a setting; did you mean TASKCTL_PORT?"]


@pytest.mark.parametrize("line", ["TASKCTL_PORT 8417", "=x", 'TASKCTL_PORT="84'])
def test_a_line_of_env_file_that_says_nothing(tmp_path: Path, line: str) -> None:
    """A line of .env that is not NAME=VALUE is an error that names the file and the line."""
    file = tmp_path / ".env"
    file.write_text(f"TASKCTL_ENV=dev\n{line}\n")
    with pytest.raises(SettingsInvalid, match=r"\.env, line 2"):
        ServerSettings.load({}, env_file=file)


def test_an_account_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings load without a home; only what needs the data directory says that it is missing."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    settings = ServerSettings.load({}, env_file=None)
    with pytest.raises(SettingsInvalid, match="TASKCTL_DATA_DIR is wrong"):
        settings.with_kept_secret()
