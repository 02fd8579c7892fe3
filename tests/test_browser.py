"""What people see in a browser: the documentation's pages, and the page of examples/better-auth."""

import pytest

from better_auth import PASSWORD, waiting_login
from browser import chromium
from conftest import bare_environ, taskctl, until


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium that the tests of this module share; each opens a page of its own."""
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def page(browser):
    """A page of somebody who has never been anywhere."""
    with browser.page() as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/docs", "/api/v1/{user_id}/tasks"), ("/redoc", "List tasks")],
    ids=["docs", "redoc"],
)
def test_documentation_renders(server, page, path, operation):
    """The API's documentation shows its operations, and its content security policy stops nothing in it."""
    page.open(server.url + path)
    until(lambda: page.sees(operation))
    assert page.problems() == []


def sign(page, how, email):
    """Fill in the page's form, and press one of its buttons."""
    page.fill("[name=email]", email)
    page.fill("[name=password]", PASSWORD)
    page.click(f"[value={how}]")


def test_page_keeps_tasks(better_auth_pair, page):
    """Somebody signs up, adds a task at taskctl, another origin, and finds it after signing in again."""
    issuer, _ = better_auth_pair
    page.open(issuer.url)
    sign(page, "sign-up", "ada@example.com")
    until(lambda: page.sees("Signed in as ada@example.com"))
    page.fill("[name=title]", "Buy <b>milk</b>")
    page.click("#new-task button")
    until(lambda: page.sees("Buy <b>milk</b>"))
    page.click("#sign-out")
    until(lambda: not page.sees("Signed in as"))
    assert not page.sees("milk")
    sign(page, "sign-in", "ada@example.com")
    until(lambda: page.sees("Buy <b>milk</b>"))
    assert page.problems() == []


def test_page_lets_a_program_in(better_auth_pair, page, tmp_path):
    """`taskctl login` leads, past the sign-up, to a page that lets it in; both have the same tasks then."""
    issuer, server = better_auth_pair
    environ = bare_environ(tmp_path)
    with waiting_login(server.url, issuer.url, environ) as login:
        page.open(login.url)
        sign(page, "sign-up", "grace@example.com")
        page.click("[value=approve]")
        until(lambda: page.sees("Approved."))
        assert login.end()[0] == 0
    assert taskctl("tasks", "add", "Buy milk", environ=environ).code == 0
    page.open(issuer.url)
    until(lambda: page.sees("Buy milk"))
    assert page.problems() == []


def test_page_says_what_went_wrong(better_auth_pair, page):
    """A wrong password is answered on the page."""
    issuer, _ = better_auth_pair
    page.open(issuer.url)
    sign(page, "sign-in", "nobody@example.com")
    until(lambda: page.sees("Invalid email or password"))


def test_page_of_another_origin_reads_nothing(better_auth_pair, page):
    """A browser gives the API's answers to pages of the configured origins only."""
    issuer, server = better_auth_pair
    read = f"fetch('{server.url}/api/v1/me/tasks').then(answer => answer.status, error => error.name)"
    assert page.evaluate(read) == "TypeError"
    page.open(issuer.url)
    assert page.evaluate(read) == 401
