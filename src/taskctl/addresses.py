"""Where a server is: its URL in one form, its origin, and whether it is this machine."""

import re
from urllib.parse import urlsplit

from taskctl.errors import SettingsInvalid
from taskctl.vocabulary import API_PREFIX


def server_root(url: str, *, allow_http: bool) -> str:
    """A server's root URL in its one form: no trailing slash, no `/api/v1`.

    Raises:
        SettingsInvalid: it is no http or https URL, it carries a user name, query or fragment, or it is
            plain HTTP to another machine and `allow_http` is false.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number up to 65535
    except ValueError as error:
        raise SettingsInvalid(f"{url!r} is not a URL: {error}.") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise SettingsInvalid(f"{url!r} is not a server's URL; one looks like https://tasks.example.com.")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise SettingsInvalid("A server's URL has no user name, password, query or fragment.")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
        raise SettingsInvalid(
            f"Plain HTTP would show the token to everyone on the way to {parts.hostname}; "
            "use https, or allow it with --allow-http."
        )
    path = parts.path.rstrip("/").removesuffix(API_PREFIX).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without brackets) is this machine: RFC 6761, section 6.3."""
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL (RFC 6454): a token given for one origin goes to no other."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
