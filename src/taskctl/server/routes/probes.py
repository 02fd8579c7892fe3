"""For probes and people: is it alive, is it ready, and the details."""

import time
from typing import Any

from fastapi import APIRouter, Response

from taskctl import __version__
from taskctl.errors import NotReady, Unavailable
from taskctl.models import Health, KeySetHealth, Liveness, Problem, Readiness
from taskctl.server import migrations
from taskctl.server.call import Call, Service
from taskctl.server.routing import JSON, RETRY_AFTER, PublicRoute

router = APIRouter(route_class=PublicRoute, tags=["probes"])

_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "Not ready; `checks` says why.", "headers": RETRY_AFTER}
}


@router.get("/livez", response_model=Liveness)
async def livez(_: Call) -> Response:
    """Answer while the process runs."""
    return Response(Liveness().model_dump_json(), media_type=JSON)


@router.get("/readyz", response_model=Readiness, responses=_NOT_READY)
async def readyz(call: Call) -> Response:
    """Say whether this server takes requests."""
    checks = await readiness(call.service)
    if any(result != "ok" for result in checks.values()):
        failed = "; ".join(f"{name}: {result}" for name, result in checks.items() if result != "ok")
        raise NotReady(f"Not ready: {failed}.", checks=checks)
    return Response(Readiness(checks=checks).model_dump_json(), media_type=JSON)


@router.get("/health", response_model=Health)
async def health(call: Call) -> Response:
    """Tell the details; 200 whatever they are."""
    service = call.service
    database: dict[str, Any] = {"reachable": False, "latency_ms": None, "revision": None}
    try:
        database["latency_ms"] = round(await service.database.ping(), 2)
        database["reachable"] = True
        database["revision"] = await service.database.revision()
    except Unavailable:
        pass
    checks = await readiness(service) if database["reachable"] else {"database": "unreachable"}
    failed = [f"{name}: {result}" for name, result in checks.items() if result != "ok"]
    answer = Health(
        status="; ".join(failed) or "ok",
        version=__version__,
        environment=service.settings.environment,
        uptime_seconds=round(time.monotonic() - service.started, 1),
        database=database,
        pool=service.database.pool_use(),
        key_set=_key_set_health(service),
    )
    return Response(answer.model_dump_json(), media_type=JSON)


def _key_set_health(service: Service) -> KeySetHealth | None:
    if service.verifier.key_set is None:
        return None
    state = service.verifier.key_set.state()
    age = None if state.age_seconds is None else round(state.age_seconds, 1)
    return KeySetHealth(state=state.freshness, keys=state.keys, age_seconds=age, last_fetch=state.last_fetch)


async def readiness(service: Service) -> dict[str, str]:
    """Each condition of being ready, `ok` or what keeps it from being so."""
    if service.drain.draining:
        return {"draining": "this server is about to end"}
    try:
        revision = await service.database.revision()
    except Unavailable as error:
        return {"database": error.code, "schema": "unknown"}
    state = migrations.compare(revision)
    usable = state in {migrations.State.head, migrations.State.ahead}
    return {"database": "ok", "schema": "ok" if usable else f"{state} ({revision or 'none'})"}
