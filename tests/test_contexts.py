"""`taskctl.contexts` on real files."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from taskctl import contexts
from taskctl.addresses import server_root
from taskctl.contexts import Context, Contexts, Flags, Session, resolve
from taskctl.errors import LocalError, NotLoggedIn, SettingsInvalid


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"TASKCTL_CONFIG_DIR": str(tmp_path / "config")}


def save(environ, name="local", server="http://127.0.0.1:8000", token="t", **more):  # noqa: S107
    contexts.save_context(name, server, token, environ=environ, **more)


# Where and how they are stored


def test_what_is_saved_is_loaded(environ):
    """A context comes back as it was saved; the first is current, and `if-none` and `never` leave it so."""
    assert contexts.load(environ) == Contexts()
    save(environ, make_current="if-none")
    save(environ, "second", "https://b.example/p/api/v1/", make_current="if-none", token=None)
    save(environ, "third", "http://c.example", allow_http=True, make_current="never")
    stored = contexts.load(environ)
    assert stored.current == "local"
    assert stored.contexts == {
        "local": Context("http://127.0.0.1:8000", "t"),
        "second": Context("https://b.example/p", None),
        "third": Context("http://c.example", "t", allow_http=True),
    }
    save(environ, "second", "https://b.example")
    assert contexts.load(environ).current == "second"


def test_the_file_is_for_its_owner_only(environ):
    """The folder is made 0700 and the file 0600, also where a file stood with a wider mode."""
    save(environ)
    file = contexts.path(environ)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    save(environ, token="u")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["contexts.json", "contexts.lock"]


def test_the_format_is_as_documented(environ):
    """The file holds a version, the current context's name and the contexts by name."""
    save(environ)
    assert json.loads(contexts.path(environ).read_text()) == {
        "version": 1,
        "current": "local",
        "contexts": {"local": {"server": "http://127.0.0.1:8000", "token": "t", "allow_http": False}},
    }


def test_use_and_remove(environ):
    """`use` changes the current context; removing it leaves none current; an unknown name is refused."""
    save(environ)
    save(environ, "b")
    contexts.use_context("local", environ=environ)
    contexts.remove_context("b", environ=environ)
    assert (contexts.load(environ).current, list(contexts.load(environ).contexts)) == ("local", ["local"])
    contexts.remove_context("local", environ=environ)
    assert contexts.load(environ) == Contexts()
    for act in (contexts.use_context, contexts.remove_context):
        with pytest.raises(SettingsInvalid, match="known: there are none yet"):
            act("nope", environ=environ)


@pytest.mark.parametrize(
    "content",
    [
        b"{bad",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"version": 2, "current": null, "contexts": {}}',
        b'{"version": 1, "current": "x", "contexts": {}}',
        b'{"version": 1, "current": null, "contexts": {"a": {"server": 1}}}',
        b'{"version": 1, "current": null, "contexts": {"a": "b"}}',
        b'{"version": 1, "current": null, "contexts": {"a": {"server": ""}}}',
        b'{"version": 1, "current": null, "contexts": {"a": {"server": "https://a", "session": 1}}}',
        b'{"version": 1, "current": null, "contexts": {"a": {"server": "https://a", "session": "a b"}}}',
        b'{"version": 1, "current": null, "contexts": {"a": {"server": "https://a", "keyring": "yes"}}}',
        b'{"version": 1, "current": null, "contexts": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_named_and_kept(environ, content):
    """What cannot be understood is reported with the file's name, and never written over."""
    file = contexts.path(environ)
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=r"contexts\.json"):
        contexts.load(environ)
    with pytest.raises(SettingsInvalid, match=r"contexts\.json"):
        save(environ)
    assert file.read_bytes() == content


def test_processes_at_once_lose_nothing(environ):
    """Ten processes that save a context each, at the same time, leave ten contexts."""
    code = (
        "import sys; from taskctl.contexts import save_context as s; s(sys.argv[1], 'http://localhost', 't')"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, f"c{number}"], env={**os.environ, **environ})
        for number in range(10)
    ]
    assert [process.wait() for process in started] == [0] * 10
    assert len(contexts.load(environ).contexts) == 10


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    """Where the folder cannot be made, the error names the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match=r"file/contexts\.json cannot be written"):
        save({"TASKCTL_CONFIG_DIR": str(tmp_path / "file")})


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """When nothing more can be written, the old contexts stay and no temporary file is left."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    environ = {"TASKCTL_CONFIG_DIR": str(folder)}
    try:
        save(environ)
        save(environ, "filling", token="t" * 7000)
        before = contexts.path(environ).read_bytes()
        with pytest.raises(LocalError, match="No space left"):
            save(environ, "overflowing", token="t" * 7000)
        assert contexts.path(environ).read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == ["contexts.json", "contexts.lock"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever it is


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_none(environ, name):
    """A context's name is 1 to 64 letters, digits, dots, dashes and underscores."""
    with pytest.raises(SettingsInvalid):
        save(environ, name)


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG directories are Linux's")
def test_the_xdg_directories(tmp_path):
    """XDG_CONFIG_HOME counts if it is absolute, else ~/.config; TASKCTL_CONFIG_DIR outranks it."""
    assert contexts.path({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "taskctl" / "contexts.json"
    for variables in ({}, {"XDG_CONFIG_HOME": "relative"}):
        assert contexts.path(variables) == Path.home() / ".config" / "taskctl" / "contexts.json"


# Which settings are used


def test_without_a_server_there_is_a_hint():
    """No remote host is assumed: the error tells how to name one."""
    with pytest.raises(SettingsInvalid, match="taskctl login --server URL"):
        resolve(Flags(), {}, stored=Contexts())


STORED = Contexts(
    "a",
    {
        "a": Context("https://a.example/api", "token-a"),
        "b": Context("http://b.example", "token-b", allow_http=True),
        "c": Context("https://c.example"),
    },
)


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        (Flags(), {}, ("https://a.example/api", "token-a", "a")),
        (Flags(context="b"), {}, ("http://b.example", "token-b", "b")),
        (Flags(), {"TASKCTL_CONTEXT": "b"}, ("http://b.example", "token-b", "b")),
        (Flags(context="a"), {"TASKCTL_CONTEXT": "b"}, ("https://a.example/api", "token-a", "a")),
        (Flags(), {"TASKCTL_TOKEN": "env"}, ("https://a.example/api", "env", "a")),
        (Flags(context="b"), {"TASKCTL_TOKEN": "env"}, ("http://b.example", "token-b", "b")),
        (Flags(context="c"), {"TASKCTL_TOKEN": "env"}, ("https://c.example", "env", "c")),
        (Flags(), {"TASKCTL_SERVER": "https://x.example"}, ("https://x.example", None, None)),
        (Flags(context="b"), {"TASKCTL_SERVER": "https://x.example"}, ("http://b.example", "token-b", "b")),
        (Flags("https://f.example"), {"TASKCTL_SERVER": "https://x"}, ("https://f.example", None, None)),
        (Flags("https://f.example"), {"TASKCTL_TOKEN": "env"}, ("https://f.example", "env", None)),
        (Flags("https://a.example:443"), {}, ("https://a.example:443", "token-a", "a")),
        (Flags("https://a.example:444"), {}, ("https://a.example:444", None, None)),
        (Flags("http://localhost:1", "b"), {}, ("http://localhost:1", None, None)),
    ],
)
def test_precedence(flags, environ, expected):
    """Flag, environment, context; and a context's token goes to no other origin."""
    settings = resolve(flags, environ, stored=STORED)
    assert (settings.server, settings.token, settings.context) == expected


def test_leave_for_plain_http_is_for_its_own_server():
    """A context that may use plain HTTP does not lend that to another server."""
    with pytest.raises(SettingsInvalid, match="allow-http"):
        resolve(Flags("http://x.example", "b"), {}, stored=STORED)
    for flags, environ in (
        (Flags("http://x.example", allow_http=True), {}),
        (Flags("http://x.example"), {"TASKCTL_ALLOW_HTTP": "1"}),
    ):
        assert resolve(flags, environ, stored=STORED).allow_http


def test_the_file_is_not_read_where_nothing_is_wanted_from_it(environ):
    """A script that sets server and token does not stumble over a damaged file."""
    contexts.path(environ).parent.mkdir()
    contexts.path(environ).write_text("{bad")
    settings = resolve(Flags("http://[::1]:1"), {**environ, "TASKCTL_TOKEN": " t\n"})
    assert (settings.server, settings.token) == ("http://[::1]:1", "t")


def test_unknown_contexts_are_refused():
    """A context that does not exist is wrong, wherever it is named; the error says which exist."""
    for flags, environ in ((Flags(context="x"), {}), (Flags(), {"TASKCTL_CONTEXT": "x"})):
        with pytest.raises(SettingsInvalid, match="known: a, b, c"):
            resolve(flags, environ, stored=STORED)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e9"])
def test_a_timeout_is_a_number_of_seconds(value):
    """The timeout is more than nothing and at most a day; --timeout outranks TASKCTL_TIMEOUT."""
    with pytest.raises(SettingsInvalid, match="TASKCTL_TIMEOUT"):
        resolve(Flags(), {"TASKCTL_TIMEOUT": value}, stored=STORED)
    assert resolve(Flags(timeout=2.5), {"TASKCTL_TIMEOUT": value}, stored=STORED).timeout == 2.5
    assert resolve(Flags(), {"TASKCTL_TIMEOUT": "7"}, stored=STORED).timeout == 7
    assert resolve(Flags(), {}, stored=STORED).timeout == 30


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "https://",
        "https://u:p@example.com",
        "https://example.com?x=1",
        "https://example.com#x",
        "https://example.com:99999",
        "https://exam ple.com",
        "https://example.com/\n",
        "http://example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
    ],
)
def test_what_is_no_servers_url(url):
    """A server's URL is https, or http to this machine, and nothing but scheme, host, port and path."""
    with pytest.raises(SettingsInvalid):
        server_root(url, allow_http=False)


def test_a_servers_url_has_one_form():
    """Trailing slashes and the API's own path are taken off; hosts are lower case."""
    for url in ("https://Example.com/p/", "https://example.com/p/api/v1", "https://example.com/p/api/v1/"):
        assert server_root(url, allow_http=False) == "https://example.com/p"
    for host in ("localhost", "127.0.0.1", "127.9.9.9:80", "[::1]:8000"):
        assert server_root(f"http://{host}", allow_http=False) == f"http://{host}"


@pytest.mark.parametrize("token", ["", " \n", "two words", "ключ", "x" * 9000, "nul\0"])
def test_what_is_no_token(token):
    """A token is visible ASCII of a sensible length; the error never repeats it."""
    with pytest.raises(SettingsInvalid) as caught:
        contexts.checked_token(token, "stdin")
    assert not token.strip() or token not in str(caught.value)


def test_no_repr_shows_a_token():
    """Neither a context nor the settings show their token when printed."""
    settings = resolve(Flags(), {}, stored=STORED)
    assert "token-a" not in f"{settings!r} {settings} {STORED!r} {STORED}"
    with_session = settings._replace(session=Session("https://auth.example", "session-a"))
    assert "session-a" not in f"{with_session!r} {with_session.session!r}"
    with pytest.raises(NotLoggedIn):
        resolve(Flags(context="c"), {}, stored=STORED).require_token()
