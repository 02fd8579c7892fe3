"""Tokens of a real issuer over HTTP: both ways of trust at once, outages, events, health, who am I."""

import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from conftest import (
    SECRET,
    Server,
    bare_environ,
    client_of,
    make_settings,
    make_user,
    taskctl,
    until,
    wait_until_ready,
)
from issuer import Issuer, b64, public_jwk, running_issuer
from taskctl.server.app import create_app

TASKS = "/api/v1/me/tasks"
ME = "/api/v1/me"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer with one key of each algorithm."""
    with running_issuer() as running:
        for kind in ("EdDSA", "ES256", "ES512", "RS256", "PS256"):
            running.publish(kind)
        yield running


@pytest.fixture
async def both(database_url: str, issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that trusts a secret and the issuer."""
    application = create_app(make_settings(database_url, BETTER_AUTH_URL=issuer.url))
    async with application.router.lifespan_context(application), client_of(application) as client:
        yield client


async def ask(client: httpx.AsyncClient, token: str, path: str = TASKS, **headers: str) -> httpx.Response:
    """One request with this token."""
    return await client.get(path, headers={"Authorization": f"Bearer {token}"} | headers)


async def outcome(client: httpx.AsyncClient, token: str) -> tuple[int, str | None]:
    """The status, and the code where it is a refusal."""
    answer = await ask(client, token)
    if answer.status_code == 401:
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    return answer.status_code, answer.json().get("code")


async def test_both_ways_of_trust(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """Tokens signed by hand and tokens of the issuer are served side by side, and their users are one."""
    user = make_user()
    assert (await both.post(TASKS, json={"title": "By hand"}, headers=user.headers)).status_code == 201
    for kind in ("EdDSA", "ES256", "ES512", "RS256", "PS256"):
        answer = await ask(both, issuer.token(kind, sub=user.id))
        assert [task["title"] for task in answer.json()["items"]] == ["By hand"]
    assert issuer.hits == 1


async def test_subjects_are_opaque(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """An id, a UUID, a number and an e-mail address are all subjects."""
    for subject in (
        "Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu",
        "0b6c2a1e-7c7e-4d41-8b57-4f5f0f2a9f10",
        "1",
        "a@b.example",
    ):
        answer = await ask(both, issuer.token(sub=subject), ME)
        assert (answer.status_code, answer.json()["user_id"]) == (200, subject)


async def test_look_alikes_of_the_issuer(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """The session cache that the same keys sign is no login, nor is a token without its audience."""
    cache = issuer.sign(
        {"alg": "EdDSA", "kid": "EdDSA-0", "typ": "session-cache+jwt"},
        "EdDSA",
        aud="better-auth:session-cache",
    )
    assert await outcome(both, cache) == (401, "token_audience_wrong")
    assert await outcome(both, issuer.token(aud=...)) == (401, "token_claim_missing")
    assert await outcome(both, issuer.token(iss=issuer.url + "/api/auth")) == (401, "token_issuer_wrong")
    assert await outcome(both, "Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu") == (401, "token_malformed")


async def test_configured_names_hold_for_both(database_url: str, issuer: Issuer) -> None:
    """Issuers and audiences that are set replace the origin, and bind tokens signed by hand too."""
    application = create_app(
        make_settings(
            database_url,
            BETTER_AUTH_URL=issuer.url,
            TASKCTL_JWT_ISSUERS="https://app.example.com",
            TASKCTL_JWT_AUDIENCES="taskctl",
        )
    )
    names = {"iss": "https://app.example.com", "aud": "taskctl"}
    async with application.router.lifespan_context(application), client_of(application) as client:
        assert await outcome(client, issuer.token()) == (401, "token_issuer_wrong")
        assert await outcome(client, issuer.token(**names)) == (200, None)
        assert await outcome(client, make_user().token) == (401, "token_claim_missing")
        assert await outcome(client, make_user(claims=names).token) == (200, None)


async def test_issuer_alone(database_url: str, issuer: Issuer) -> None:
    """Without a secret HS256 is no algorithm here."""
    application = create_app(make_settings(database_url, BETTER_AUTH_SECRET="", BETTER_AUTH_URL=issuer.url))
    async with application.router.lifespan_context(application), client_of(application) as client:
        assert await outcome(client, issuer.token()) == (200, None)
        assert await outcome(client, make_user().token) == (401, "token_algorithm_not_allowed")


async def test_issuer_that_is_down(database_url: str, issuer: Issuer) -> None:
    """Without keys: 503 with Retry-After, ready all the same, secrets work; the keys come by themselves."""
    issuer.down()
    application = create_app(make_settings(database_url, BETTER_AUTH_URL=issuer.url))
    async with application.router.lifespan_context(application), client_of(application) as client:
        answer = await ask(client, issuer.token())
        assert (answer.status_code, answer.json()["code"]) == (503, "auth_keys_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "www-authenticate" not in answer.headers
        assert await outcome(client, make_user().token) == (200, None)
        assert (await client.get("/readyz")).status_code == 200
        health = (await client.get("/health")).json()
        assert (health["status"], health["key_set"]["state"]) == ("ok", "none")
        assert (health["key_set"]["last_fetch"], health["key_set"]["keys"]) == ("unreachable", 0)
        issuer.up()
        # It may have been asked as often as it may be; then the background's next try brings the keys.
        key_set = application.state.service.verifier.key_set
        await key_set.refresh()
        assert await outcome(client, issuer.token()) == (200, None)
        issuer.down()
        assert await outcome(client, issuer.token(sub="bob")) == (200, None)
        assert await outcome(client, issuer.token("EdDSA", 1)) == (401, "token_key_unknown")


async def test_health_and_metrics_tell_of_the_keys(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """`/health` has the key set's state and no address; `/metrics` has fetches, keys, age and staleness."""
    await ask(both, issuer.token())
    answer = await both.get("/health")
    state = answer.json()["key_set"]
    assert (state["state"], state["keys"], state["last_fetch"]) == ("fresh", 5, "ok")
    assert state["age_seconds"] >= 0
    assert str(issuer.port) not in answer.text
    text = (await both.get("/metrics")).text
    assert re.search(r'^taskctl_key_set_fetches_total\{outcome="ok"\} 1.0$', text, re.MULTILINE)
    assert re.search(r"^taskctl_key_set_keys 5.0$", text, re.MULTILINE)
    assert re.search(r"^taskctl_key_set_stale 0.0$", text, re.MULTILINE)
    assert re.search(r"^taskctl_key_set_age_seconds [0-9.e-]+$", text, re.MULTILINE)
    issuer.answer = lambda handler: handler.send_error(500)
    await both._transport.app.state.service.verifier.key_set.refresh()
    text = (await both.get("/metrics")).text
    assert re.search(r'^taskctl_key_set_fetches_total\{outcome="status"\} 1.0$', text, re.MULTILINE)


async def test_who_am_i(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """`/api/v1/me` tells user, issuer, scopes, expiry and what vouches for the token, and not the token."""
    expires = int(time.time()) + 600
    token = issuer.token(sub="carol", scope="tasks:read openid", exp=expires)
    answer = await ask(both, token, ME)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(expires))
    assert answer.json()["expires_at"].startswith(stamp)
    assert {name: value for name, value in answer.json().items() if name != "expires_at"} == {
        "user_id": "carol",
        "issuer": issuer.url,
        "scopes": ["openid", "tasks:read"],
        "verified_by": {"trust": "key_set", "algorithm": "EdDSA", "key_id": "EdDSA-0"},
    }
    assert not [part for part in token.split(".") if part in answer.text]
    assert answer.headers["cache-control"] == "no-store"
    by_hand = (await both.get(ME, headers=make_user().headers)).json()
    assert by_hand["verified_by"] == {"trust": "secret", "algorithm": "HS256", "key_id": None}
    assert (by_hand["issuer"], by_hand["scopes"]) == (None, ["tasks:read", "tasks:write"])


async def test_who_am_i_needs_a_token_and_no_scope(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """Any good token may ask, whatever its scope and however long it lasts; parameters are none."""
    assert (await both.get(ME)).status_code == 401
    for claims in ({"scope": ""}, {"scope": "openid"}, {"exp": 253_402_300_800 * 2}, {"exp": 9e14}):
        answer = await ask(both, issuer.token(**claims), ME)
        assert answer.status_code == 200
    assert answer.json()["expires_at"].startswith("9999-12-31T23:59:59")
    assert (await both.head(ME, headers=make_user().headers)).status_code == 200
    assert (await ask(both, issuer.token(), ME + "?x=1")).json()["code"] == "validation_failed"
    assert (await ask(both, issuer.token(), ME + "/")).status_code == 404
    assert (await both.post(ME, headers=make_user().headers)).status_code == 405


def vectors() -> Iterator[str]:
    """Hostile tokens in the manner of public collections, made of every piece that may be wrong."""
    eddsa = {"alg": "EdDSA", "kid": "EdDSA-0"}
    claims = {"sub": "alice", "exp": 4_000_000_000, "iss": "{iss}", "aud": "{iss}"}
    headers: list[Any] = [
        *({"alg": alg} for alg in ("none", "NONE", "nOnE", "", "EdDSA ", "ES256K", "HS384", "HS512", "dir")),
        *({"alg": alg, "kid": f"{alg}-0"} for alg in ("EdDSA", "ES256", "ES512", "RS256", "PS256", "HS256")),
        *(
            {"alg": "RS256", "kid": kid}
            for kid in ("EdDSA-0", "", "\0", "../x", None, 1, [], {}, True, "é" * 99)
        ),
        *(eddsa | {name: 1} for name in ("crit", "b64", "jwk", "jku", "x5u", "x5c", "x5t", "zip", "enc")),
        *(eddsa | {"crit": crit} for crit in ([], ["b64"], ["exp"], ["alg"], {}, "b64")),
        *({}, [], None, 1, "EdDSA", {"alg": None}, {"alg": 1}, {"alg": ["EdDSA"]}, {"alg": {"a": 1}}),
    ]
    signatures = [
        "",
        "AA",
        "AAAA",
        b64(b"\0" * 64),
        b64(b"\xff" * 64),
        b64(b"0" * 132),
        b64(b"\1" * 256),
        "A" * 5,
        "=",
        "*",
    ]
    for header in headers:
        for signature in signatures:
            yield f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}.{signature}"
    good = b64(json.dumps(eddsa).encode())
    for payload in (b"", b"null", b"[]", b"{", b"\xff", b'{"sub":"a","sub":"b"}', b"1" * 5000, b"[" * 3000):
        for signature in signatures:
            yield f"{good}.{b64(payload)}.{signature}"
    yield from (".", "..", "...", "a.b.c", f"{good}..", f"{good}", f"{good}.", f".{good}.", "e30.e30.", "e30")
    yield from (json.dumps({"payload": "x", "signatures": [{"protected": good}]}), "{}", "[]")


async def test_hostile_tokens_get_401(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """Each of several hundred hostile tokens is 401, none is 500, and the issuer is hardly asked."""
    hostile = [token.replace("{iss}", issuer.url) for token in vectors()]
    assert len(hostile) > 500
    answers = [(token, await ask(both, token)) for token in hostile]
    assert [(token, answer.status_code) for token, answer in answers if answer.status_code != 401] == []
    assert issuer.hits <= 1 + 6


async def test_public_bytes_are_no_secret(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """An HMAC over what the issuer publishes signs nobody in."""
    signing = ".".join(issuer.sign({"alg": "HS256", "kid": "RS256-0"}, "RS256", aud=...).split(".")[:2])
    for text in (json.dumps(public_jwk("RS256")), public_jwk("EdDSA")["x"], public_jwk("RS256")["n"]):
        for key in (text.encode(), base64.urlsafe_b64decode(b64(text.encode()) + "==")):
            token = f"{signing}.{b64(hmac.digest(key, signing.encode(), 'sha256'))}"
            assert await outcome(both, token) == (401, "token_signature_invalid")


async def test_unknown_keys_do_not_use_up_the_issuer(both: httpx.AsyncClient, issuer: Issuer) -> None:
    """A flood of forged names over HTTP asks the issuer a handful of times; a rotation after it works."""
    assert await outcome(both, issuer.token(sub="dora")) == (200, None)
    for number in range(100):
        token = issuer.token("EdDSA", 99, kid=f"some-forged-name-{number}", sub="dora")
        assert await outcome(both, token) == (401, "token_key_unknown")
    assert issuer.hits <= 1 + 5
    issuer.publish("EdDSA", 1)
    assert await outcome(both, issuer.token("EdDSA", 1, sub="dora")) == (200, None)


@pytest.fixture
def served(start_server: Callable[..., Server], database_url: str, issuer: Issuer) -> Iterator[Server]:
    """A server of two workers that trusts a secret and the issuer, and logs JSON."""
    server = start_server(
        "--workers",
        "2",
        TASKCTL_ENV="test",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
        BETTER_AUTH_URL=issuer.url,
        TASKCTL_LOG_FORMAT="json",
    )
    yield server
    server.process.terminate()
    server.process.wait(30)


def test_events(served: Server, issuer: Issuer) -> None:
    """Acceptances, refusals and fetches are events with what is known of the token, and never the token."""

    def event(name: str, request_id: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            lines = [json.loads(line) for line in served.log.read_text().splitlines()]
            return next(
                (each for each in lines if (each["event"], each.get("request_id")) == (name, request_id)),
                None,
            )

        told: dict[str, Any] = until(found)
        return told

    sent = {
        "good": issuer.token(sub="erin"),
        "unknown": issuer.token("EdDSA", 5, sub="erin"),
        "forged": issuer.token("EdDSA", 5, kid="EdDSA-0", sub="erin"),
    }
    for name, token in sent.items():
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": name}
        httpx.get(served.url + ME, headers=headers)
    told = event("auth_accepted", "good")
    expected = {"code": "accepted", "sub": "erin", "kid": "EdDSA-0", "alg": "EdDSA", "trust": "key_set"}
    assert expected.items() <= told.items()
    assert told["client"] == "127.0.0.1"
    for name, code in (("unknown", "token_key_unknown"), ("forged", "token_signature_invalid")):
        told = event("auth_refused", name)
        assert (told["code"], told["sub_unverified"], told["alg"]) == (code, "erin", "EdDSA")
    log = served.log.read_text()
    assert not [part for token in sent.values() for part in token.split(".") if part in log]
    changed = next(json.loads(line) for line in log.splitlines() if "auth_keys_changed" in line)
    assert "EdDSA-0" in changed["kids"]


def test_workers_show_the_worst_of_their_keys(served: Server) -> None:
    """Each worker has the keys, and `/metrics` of any tells what the worst off has."""

    def shown() -> bool:
        text = httpx.get(served.url + "/metrics").text
        return "taskctl_key_set_keys 5.0" in text and "taskctl_key_set_stale 0.0" in text

    until(shown)


def test_serve_starts_before_its_issuer(
    launch: Callable[..., Server], database_url: str, issuer: Issuer
) -> None:
    """A server that was started with the issuer down is ready, warns, and accepts tokens once it is up."""
    issuer.down()
    server = wait_until_ready(
        launch(
            TASKCTL_ENV="prod",
            TASKCTL_HOST="127.0.0.1",
            TASKCTL_DRAIN_DELAY="0",
            DATABASE_URL=database_url,
            BETTER_AUTH_URL=issuer.url,
        )
    )
    headers = {"Authorization": f"Bearer {issuer.token()}"}
    assert httpx.get(server.url + ME, headers=headers).status_code == 503
    assert "auth_keys_fetch_failed" in until(server.log.read_text)
    issuer.up()
    until(lambda: httpx.get(server.url + ME, headers=headers).status_code == 200)


def test_inspect_fetches_the_keys(tmp_path: Any, issuer: Issuer) -> None:
    """`taskctl token inspect` and `verify` fetch the key set, and say that the issuer is down where it is."""
    environ = bare_environ(tmp_path, TASKCTL_ENV="test", BETTER_AUTH_URL=issuer.url)
    done = taskctl("token", "inspect", environ=environ, given=issuer.token())
    assert (done.code, done.err) == (0, "")
    assert "ok    key known" in done.out
    assert done.out.endswith("accepted\n")
    unknown = taskctl("token", "verify", environ=environ, given=issuer.token("EdDSA", 5))
    assert (unknown.code, "token_key_unknown" in unknown.err or "publishes no" in unknown.err) == (4, True)
    issuer.down()
    report = json.loads(taskctl("token", "inspect", "--json", environ=environ, given=issuer.token()).out)
    checks = {check["name"]: check["code"] for check in report["checks"]}
    assert checks["key known"] == "auth_keys_unavailable"
