"""An auth server that runs Better Auth: log in by device (RFC 8628), get tokens for the API, sign out.

A login yields a session token, which is opaque and goes to the auth server alone; the API gets the JWT that
the auth server gives for it. No redirect is followed. The server needs the plugins `deviceAuthorization`,
`bearer` and `jwt`. Standard library only.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin, urlsplit

from taskctl import contexts, errors
from taskctl.addresses import server_root
from taskctl.answers import Answer, redirected, unexpected, unexpected_kind
from taskctl.transport import Transport, Try

CLIENT_ID = "taskctl"
"""What the command line calls itself at an auth server, unless told otherwise."""

SCOPE = "openid profile email"
"""What a login asks for: to know who somebody is. What the token allows is the server's to decide."""

INTERVAL_DEFAULT, SLOWER = 5.0, 5.0
"""Seconds between two polls unless the server says, and what `slow_down` adds (RFC 8628, 3.2 and 3.5)."""

_ANSWER_MAX = 1 << 20
_WORDS_MAX = 200
_KIND = "Better Auth"
_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Device(NamedTuple):
    """A login that waits for a person (RFC 8628, section 3.2).

    Attributes:
        code: what the poll is made with; a secret.
        user_code: what the person sees here and confirms there.
        url: where to enter the code; `url_complete` has it entered already.
        expires_in, interval: seconds until it is void, and between two polls.
    """

    code: str
    user_code: str
    url: str
    url_complete: str
    expires_in: float
    interval: float

    def __repr__(self) -> str:
        return f"Device({self.user_code!r})"


class _Refused(errors.UnexpectedAnswer):
    """An answer with a status other than 2xx, for the method that asked to make sense of.

    Attributes:
        reason: OAuth's `error`, or Better Auth's own `code`; empty where there is neither.
        words: what the server says about it, or all that is known.
    """

    def __init__(self, server: str, answer: Answer) -> None:
        self.server, self.answer = server, answer
        body = answer.json if isinstance(answer.json, dict) else {}
        self.reason = str(body.get("error") or body.get("code") or "")[:_WORDS_MAX]
        words = str(body.get("error_description") or body.get("message") or "")[:_WORDS_MAX]
        self.words = " ".join(words.split()).rstrip(".") or self.reason or answer.status_line
        super().__init__(self.words)
        if self.reason:
            self.code = self.reason  # type: ignore[misc] # so that --debug shows why

    def meaning(self, missing: str = "Better Auth's endpoints") -> errors.TaskctlError:
        """The error that it comes to where the request could not be expected to be refused."""
        status, answer = self.answer.status, self.answer
        if status in range(300, 400):
            return redirected(self.server, answer)
        if status == HTTPStatus.NOT_FOUND:
            return errors.UnexpectedAnswer(f"{self.server} has not got {missing} (404).")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return errors.RateLimited(f"{self.server} takes no more requests right now; try again later.")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return errors.ServerFailed(f"{self.server}, or a proxy in front of it, failed: {self.words}.")
        if answer.json is None:
            return unexpected_kind(self.server, answer, _KIND)
        return errors.Forbidden(f"{self.server} refuses: {self.words}.")


class BetterAuth:
    """One auth server. A context manager: it keeps its connection open.

    Each method raises what `Transport.send` does, and `UnexpectedAnswer` where no Better Auth answers.

    Args:
        url: the auth server's URL as BETTER_AUTH_URL has it: a path in it is the path of Better Auth's
            endpoints, and without one they are under `/api/auth`.
        allow_http: whether plain HTTP may go to another machine.
        timeout: seconds for one request, its repeats included.
        on_try, sleep, clock: as for `Transport`.

    Raises:
        SettingsInvalid: the URL is not one, or plain HTTP is not allowed to it.
    """

    def __init__(
        self,
        url: str,
        *,
        allow_http: bool = False,
        timeout: float = contexts.TIMEOUT_DEFAULT,
        on_try: Callable[[Try], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = server_root(url, allow_http=allow_http)
        self._sleep, self._clock = sleep, clock
        self._transport = Transport(
            self.url if urlsplit(self.url).path else f"{self.url}/api/auth",
            timeout=timeout,
            on_try=on_try,
            sleep=sleep,
            clock=clock,
            kind=_KIND,
            error_of=lambda _, answer: _Refused(self.url, answer),
            answer_max=_ANSWER_MAX,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def start_login(self, client_id: str = CLIENT_ID) -> Device:
        """Ask for a code that a person confirms in a browser.

        Raises:
            SettingsInvalid: the auth server does not know the client.
        """
        try:
            answer = self._transport.send("POST", "/device/code", {"client_id": client_id, "scope": SCOPE})
        except _Refused as refused:
            if refused.reason in {"invalid_client", "unauthorized_client"}:
                raise errors.SettingsInvalid(
                    f"{self.url} does not know the client id {client_id!r}; ask who runs it which to use, "
                    "and give it with --client-id."
                ) from None
            raise refused.meaning("a login by device: its plugin deviceAuthorization must be on") from None
        url = self._web_address(answer, "verification_uri")
        complete = "verification_uri_complete" in self._object(answer)
        return Device(
            self._text(answer, "device_code"),
            self._text(answer, "user_code"),
            url,
            self._web_address(answer, "verification_uri_complete") if complete else url,
            self._seconds(answer, "expires_in", None),
            max(1.0, self._seconds(answer, "interval", INTERVAL_DEFAULT)),
        )

    def wait_for_session(self, device: Device, client_id: str = CLIENT_ID) -> str:
        """Poll until somebody has confirmed the code, and return the session token.

        Raises:
            LoginDenied: somebody denied it, or the auth server does.
            LoginExpired: nobody confirmed it in time.
        """
        end, interval = self._clock() + device.expires_in, device.interval
        body = {"grant_type": _GRANT, "device_code": device.code, "client_id": client_id}
        while (left := end - self._clock()) > 0:
            self._sleep(min(interval, left))
            try:
                return self._text(self._transport.send("POST", "/device/token", body), "access_token")
            except _Refused as refused:
                if refused.reason == "slow_down":
                    interval += SLOWER
                elif refused.reason == "expired_token":
                    break
                elif refused.reason == "access_denied":
                    raise errors.LoginDenied from None
                elif refused.reason != "authorization_pending":
                    if refused.reason in {"invalid_grant", "invalid_client", "invalid_request"}:
                        raise errors.LoginDenied(f"{self.url} denies the login: {refused.words}.") from None
                    raise refused.meaning() from None
        raise errors.LoginExpired("Nobody has confirmed the login in time; run `taskctl login` again.")

    def token(self, session: str, *, once: bool = False) -> str:
        """A fresh token for the API, for a session token; with `once` a single try is made.

        Raises:
            NotLoggedIn: the auth server does not know the session, or not any more.
        """
        try:
            answer = self._transport.send("GET", "/token", headers=_bearer(session), once=once)
        except _Refused as refused:
            if refused.answer.status == HTTPStatus.UNAUTHORIZED:
                raise errors.NotLoggedIn(f"The login at {self.url} has ended; log in again.") from None
            raise refused.meaning("tokens: its plugin jwt must be on") from None
        return self._text(answer, "token")

    def sign_out(self, session: str) -> None:
        """End a session. A single try is made; one that has ended already is as good."""
        try:
            self._transport.send("POST", "/sign-out", {}, headers=_bearer(session), once=True)
        except _Refused as refused:
            if refused.answer.status != HTTPStatus.UNAUTHORIZED:
                raise refused.meaning() from None

    def _object(self, answer: Answer) -> dict[str, Any]:
        if not isinstance(answer.json, dict):
            raise unexpected(self.url, "JSON that is no object", _KIND)
        return answer.json

    def _text(self, answer: Answer, name: str) -> str:
        """A member that is visible ASCII, as codes and tokens are."""
        value = self._object(answer).get(name)
        with suppress(errors.SettingsInvalid):
            if isinstance(value, str) and value == contexts.checked_token(value, name):
                return value
        raise unexpected(self.url, f"no usable {name!r}", _KIND)

    def _seconds(self, answer: Answer, name: str, default: float | None) -> float:
        value = self._object(answer).get(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 24 * 3600:
            return float(value)
        raise unexpected(self.url, f"no usable {name!r}", _KIND)

    def _web_address(self, answer: Answer, name: str) -> str:
        """A member that a browser may be sent to: http or https, and nothing that a terminal acts on."""
        text = self._text(answer, name)
        with suppress(ValueError):
            value = urljoin(f"{self.url}/", text)
            parts = urlsplit(value)
            if parts.scheme in {"http", "https"} and parts.hostname and re.fullmatch(r"[!-~]+", value):
                return value
        raise unexpected(self.url, f"no usable {name!r}", _KIND)


def _bearer(session: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {session}"}


def renew(
    settings: contexts.ClientSettings,
    session: contexts.Session,
    *,
    once: bool = False,
    on_try: Callable[[Try], None] | None = None,
) -> str:
    """A fresh token for the context that the settings come from, kept there for the next command.

    Raises as `BetterAuth.token`, and `NotLoggedIn` names the command that logs in again.
    """
    with BetterAuth(
        session.auth_url, allow_http=settings.allow_http, timeout=settings.timeout, on_try=on_try
    ) as server:
        try:
            token = server.token(session.token, once=once)
        except errors.NotLoggedIn as error:
            command = f"taskctl login --context {settings.context}"
            raise errors.NotLoggedIn(f"The login at {server.url} has ended; run `{command}`.") from error
    # This command has what it needs; where the token cannot be kept, the next one renews again.
    with suppress(errors.LocalError):
        contexts.renew_token(str(settings.context), session, token)
    return token
