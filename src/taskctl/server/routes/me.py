"""Who a token speaks for: `/api/v1/me`."""

from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Response

from taskctl.models import Me, VerifiedBy
from taskctl.server.call import Call
from taskctl.server.routes.tasks import BEARER, PROBLEMS
from taskctl.server.routing import JSON, OwnRoute
from taskctl.vocabulary import API_PREFIX

_LAST_MOMENT = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

router = APIRouter(
    prefix=API_PREFIX,
    route_class=OwnRoute,
    dependencies=[Depends(BEARER)],
    responses={status: problem for status, problem in PROBLEMS.items() if status != 403},  # noqa: PLR2004
    tags=["me"],
)


@router.get("/me", response_model=Me)
async def read_me(call: Call) -> Response:
    """Tell whom the token speaks for, what it may do, until when, and what vouches for it."""
    identity = call.identity
    # A token may be good for longer than a calendar is.
    seconds = min(identity.expires_at, _LAST_MOMENT.timestamp())
    answer = Me(
        user_id=identity.user_id,
        issuer=identity.issuer,
        scopes=sorted(identity.scopes - {""}),
        expires_at=datetime.fromtimestamp(seconds, UTC),
        verified_by=VerifiedBy(trust=identity.trust, algorithm=identity.algorithm, key_id=identity.key_id),
    )
    return Response(answer.model_dump_json(), media_type=JSON)
