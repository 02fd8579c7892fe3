"""What people see in a browser: the documentation's pages."""

import pytest

from browser import chromium
from conftest import until


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
