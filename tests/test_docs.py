"""The documentation must not lie. `python tests/test_docs.py` rewrites what is generated in it.

Generated are the help texts between `<!-- help: taskctl … -->` and `<!-- /help -->`, and the settings between
`<!-- settings -->` and `<!-- /settings -->`.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import typer

from taskctl import errors
from taskctl.cli import main
from taskctl.cli.root import app
from taskctl.config import ServerSettings
from taskctl.signing_secret import EXAMPLE_SECRET, weak_secret

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CLI = ROOT / "docs" / "cli.md"
ERRORS = ROOT / "docs" / "errors.md"
AUTHENTICATION = ROOT / "docs" / "authentication.md"
OPERATIONS = ROOT / "docs" / "operations.md"
EXAMPLE = ROOT / ".env.example"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

CLIENT_VARIABLES = {
    "TASKCTL_ALLOW_HTTP",
    "TASKCTL_CONFIG_DIR",
    "TASKCTL_CONTEXT",
    "TASKCTL_KEYRING",
    "TASKCTL_OFFLINE",
    "TASKCTL_SERVER",
    "TASKCTL_TIMEOUT",
    "TASKCTL_TOKEN",
}
HELP = re.compile(r"(?s)(?<=<!-- help: )(taskctl[a-z ]*) -->\n(.*?)<!-- /help -->")
SETTINGS = re.compile(r"(?s)(?<=<!-- settings -->\n)(.*?)(?=<!-- /settings -->)")


def read(page):
    """A page's text."""
    return page.read_text(encoding="utf-8")


def without_code(text):
    """A page's text without what stands in fences."""
    return re.sub(r"(?ms)^```.*?^```$", "", text)


def fields():
    """Each setting's variable and field."""
    return [(str(field.alias), field) for field in ServerSettings.model_fields.values()]


def settings_table():
    """The settings as README shows them."""
    rows = [
        f"| `{name}` | {field.json_schema_extra['shown']} | {field.description} |" for name, field in fields()
    ]
    return "\n".join(["| Name | Default | Meaning |", "|---|---|---|", *rows, ""])


def program_help(command):
    """What the program prints when it is asked for a command's help, as a fenced block."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("TASKCTL_", "FORCE_"))
    }
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, environ | {"COLUMNS": "100", "NO_COLOR": "1"}, clear=True),
        contextlib.redirect_stdout(said),
        pytest.raises(SystemExit) as ended,
    ):
        main([*command.split()[1:], "--help"])
    assert ended.value.code == 0
    return f"```\n$ {command} --help\n{said.getvalue().rstrip()}\n```\n"


def commands(group=None, name="taskctl"):
    """Every visible command of the program, groups included."""
    group = group or typer.main.get_group(app)
    yield name
    context = typer.Context(group)
    for child_name in group.list_commands(context):
        child = group.get_command(context, child_name)
        if child.hidden:
            continue
        if hasattr(child, "list_commands"):
            yield from commands(child, f"{name} {child_name}")
        else:
            yield f"{name} {child_name}"


def invocations(page):
    """Every command line of the program that a page shows, as words, but those that the program prints.

    Lines of output start with two spaces.
    """
    text = HELP.sub("", read(page))
    fences = re.findall(r"(?ms)^```.*?^```$", text)
    code = [*"\n".join(fences).splitlines(), *re.findall(r"`([^`\n]+)`", without_code(text))]
    for line in code:
        for found in (
            ()
            if line.startswith("  ")
            else re.findall(r"(?:^(?:\$ )?taskctl (?=-)|(?:^|[ /;(])taskctl (?=[a-z]))([^|;&<>()#`]+)", line)
        ):
            yield re.sub(r"(['\"]).*?\1", "TEXT", found).split()


def misused(words):
    """The first word of a command line that the program would not understand, or None."""
    command, words = typer.main.get_group(app), list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-") and word != "-":  # which is stdin
            options = {name: option for option in command.params for name in option.opts}
            if word != "--help" and word.partition("=")[0] not in options:
                return word
            if "=" not in word and word != "--help" and not options[word].is_flag:
                words = words[1:]
        elif hasattr(command, "list_commands"):
            command = command.get_command(typer.Context(command), word)
            if command is None:
                return word
    return None


def example_lines():
    """Each variable in .env.example and its value."""
    return re.findall(r"(?m)^# ?([A-Z][A-Z_]+)=(.*)$", read(EXAMPLE))


def anchors(page):
    """What a link may name after `#`: the headings as GitHub writes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", without_code(read(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, CLI], ids=lambda page: page.name)
def test_help_texts_are_the_programs(page):
    """Every help text in the docs is what the program prints; `python tests/test_docs.py` mends it."""
    blocks = HELP.findall(read(page))
    assert blocks
    for command, shown in blocks:
        assert shown == program_help(command), f"{command}: run python tests/test_docs.py"


def test_settings_table_is_the_settings():
    """README's table has every setting with its default; `python tests/test_docs.py` mends it."""
    found = SETTINGS.search(read(README))
    assert found, "README has lost its markers"
    assert found[0] == settings_table(), "run python tests/test_docs.py"


def test_example_file_has_every_setting_commented_out():
    """.env.example names each setting once, and changes nothing until somebody uncomments a line."""
    assert sorted(name for name, _ in example_lines()) == sorted(name for name, _ in fields())
    assert all(line.startswith("#") or not line for line in read(EXAMPLE).splitlines())


@pytest.mark.parametrize(("name", "value"), example_lines(), ids=[name for name, _ in example_lines()])
def test_example_values_are_good_and_the_defaults(name, value):
    """A line of .env.example, uncommented, is a good value, and the default where there is one."""
    [(attribute, field)] = [
        (attribute, field) for attribute, field in ServerSettings.model_fields.items() if field.alias == name
    ]
    settings = ServerSettings.load({name: value}, env_file=None)
    if field.default and not field.is_required():
        assert getattr(settings, attribute) == field.default
    if field.default is None and name not in {"BETTER_AUTH_SECRET", "TASKCTL_METRICS_TOKEN"}:
        assert "example.com" in value


def test_example_secret_is_a_placeholder():
    """The secret in .env.example is refused wherever it matters, and the file says how to make a real one."""
    assert dict(example_lines())["BETTER_AUTH_SECRET"] == EXAMPLE_SECRET
    assert weak_secret(EXAMPLE_SECRET)
    assert "openssl rand -base64 32" in read(EXAMPLE)


def test_every_command_is_documented():
    """Each command of the program is named in README or docs/cli.md."""
    text = read(README) + read(CLI)
    helps = {command for command, _ in HELP.findall(text)}
    # Where a group's help is shown, its list of commands is.
    missing = [
        command
        for command in commands()
        if command not in text and command.rpartition(" ")[0] not in helps - {"taskctl"}
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_in_the_text_are_understood(page):
    """Every command line in the docs names commands and options that the program has."""
    assert [(words, wrong) for words in invocations(page) if (wrong := misused(words))] == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("--server URL tasks list --limit 3", None),
        ("tokens mint", "tokens"),
        ("token mint --sub ada --secret x", "--secret"),
        ("--json tasks", "--json"),
    ],
)
def test_a_wrong_command_line_is_noticed(line, wrong):
    """The check of command lines tells a wrong one from a right one."""
    assert misused(line.split()) == wrong
    assert ["token", "inspect"] in invocations(AUTHENTICATION)


def test_authentication_has_every_refusal():
    """The table of docs/authentication.md has each code with which a token is refused, and no other."""
    refused = [
        error
        for error in errors.catalogue()
        if issubclass(error, errors.Unauthenticated | errors.Forbidden) and error.status
    ]
    listed = re.findall(r"(?m)^\| `(\w+)` \|", read(AUTHENTICATION).partition("## What a 401 says")[2])
    assert sorted(listed) == sorted([*(error.code for error in refused), "auth_keys_unavailable"])


def test_operators_know_every_event():
    """The tables of docs/operations.md have each event that the program logs, and no other."""
    rows = re.findall(
        r"(?m)^\| (.+?) \| (?:info|warning|error|warning, info|info, warning) \|", read(OPERATIONS)
    )
    logged = {
        event
        for file in (ROOT / "src").rglob("*.py")
        for event in re.findall(r'\blog\.(?:info|warning|error)\(\s*"(\w+)"', read(file))
    }
    assert set(re.findall(r"\w+", " ".join(rows))) == logged - {"request"}


def test_every_error_code_has_its_section():
    """docs/errors.md has a section for each code that has an HTTP status, with it and the exit code."""
    sections = dict(re.findall(r"(?ms)^## (\w+)\n\n(.*?)(?=^#|\Z)", read(ERRORS)))
    known = {error.code: error for error in errors.catalogue() if error.status}
    assert sections.keys() == known.keys()
    for code, text in sections.items():
        assert text.startswith(f"HTTP {known[code].status}, exit code {known[code].exit_code}."), code


def test_every_code_of_the_command_line_is_listed():
    """docs/errors.md lists each code that has no HTTP status, with its exit code."""
    listed = {
        code: int(exit_code) for code, exit_code in re.findall(r"(?m)^\| `(\w+)` \| (\d) \|", read(ERRORS))
    }
    known = {error.code: error.exit_code for error in errors.catalogue() if not error.status}
    assert listed == known | {"internal": 1}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Every relative link in the docs names a file that is there, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_in_the_text_exist(page):
    """The docs speak of no variable that the program, or its tests, do not read."""
    named = set(re.findall(r"\b(?:TASKCTL(?!_TEST)|BETTER_AUTH)_[A-Z_]+", read(page)))
    assert named <= {name for name, _ in fields()} | CLIENT_VARIABLES


@pytest.mark.parametrize("last", ["taskctl serve", "python -m pytest"])
def test_the_two_commands_are_single_lines(last):
    """README's two commands stand on one line each, and once, so that people and CI can copy them."""
    found = re.findall(rf"(?m)^python3 -m venv .*{last}$", read(README))
    assert len(found) == 1


@pytest.mark.parametrize("page", [*PAGES, EXAMPLE], ids=lambda page: str(page.relative_to(ROOT)))
def test_addresses_are_nobodys(page):
    """Hosts in the docs are example.com's or loopback, and no path of somebody's machine stands there."""
    text = read(page)
    hosts = re.findall(r"(?:https?|postgresql)://(?:[\w.]+@)?([\w.-]+)", text)
    allowed = {
        "127.0.0.1",
        "host",
        "docs.citusdata.com",
        "html.spec.whatwg.org",
        "keepachangelog.com",
        "semver.org",
    }
    assert {host for host in hosts if not host.endswith("example.com")} <= allowed
    assert not re.findall(r"(?:/home|/root|/tmp|/Users|/work)/\w+", text)


def rewrite():
    """Put the program's help and settings into the docs."""
    for page in (README, CLI):
        text = HELP.sub(lambda found: f"{found[1]} -->\n{program_help(found[1])}<!-- /help -->", read(page))
        text = SETTINGS.sub(lambda _: settings_table(), text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
