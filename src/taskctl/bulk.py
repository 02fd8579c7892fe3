"""What a bulk request is made of, and its answer: wire models as those of `models`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from taskctl.models import Body, Invalid, Task, TaskContent, TaskPatch, without_defaults
from taskctl.vocabulary import BULK_MAX, IDEMPOTENCY_KEY_MAX


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: `5.0` is as whole as `5`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE_MAX = 2**53 - 1
"""The largest whole number that all who read JSON agree about (RFC 8259, section 6)."""

# The validator comes last: what stands after it is not in the schema.
_Id = Annotated[StrictInt, Field(ge=1, le=_WHOLE_MAX), BeforeValidator(_whole)]
_Version = Annotated[
    StrictInt,
    Field(ge=1, le=_WHOLE_MAX, description="Only where the task is at this version."),
    BeforeValidator(_whole),
]


class CreateOperation(Body):
    """Create a task."""

    op: Literal["create"]
    task: TaskContent
    key: Annotated[str, StringConstraints(pattern=f"^[!-~]{{1,{IDEMPOTENCY_KEY_MAX}}}$")] | None = Field(
        None, description="As `Idempotency-Key` of a single create."
    )


class PatchOperation(Body):
    """Change some of a task, as PATCH does."""

    op: Literal["patch"]
    id: _Id
    changes: TaskPatch
    if_version: _Version | None = None


class CompleteOperation(Body):
    """Complete a task, or reopen it."""

    op: Literal["complete"]
    id: _Id
    completed: StrictBool = True
    if_version: _Version | None = None


class DeleteOperation(Body):
    """Move a task to the trash."""

    op: Literal["delete"]
    id: _Id
    if_version: _Version | None = None


class RestoreOperation(Body):
    """Take a task out of the trash."""

    op: Literal["restore"]
    id: _Id
    if_version: _Version | None = None


Operation = CreateOperation | PatchOperation | CompleteOperation | DeleteOperation | RestoreOperation

_CONTENT = {"task", "changes"}
"""The members of operations that hold what people have written."""


class BulkContent(Body):
    """Many operations at once, each task at most once among them.

    What is wrong with an operation refuses the whole request. Only where each stands on its own, what is
    wrong within a `task` or `changes` refuses that operation alone: it is left out of `operations`.
    """

    atomic: StrictBool = Field(True, description="All or nothing; else each operation on its own.")
    operations: list[Annotated[Operation, Field(discriminator="op")]] = Field(
        min_length=1, max_length=BULK_MAX
    )

    _refused: dict[int, list[ErrorDetails]] = PrivateAttr(default_factory=dict)

    @property
    def refused(self) -> dict[int, list[ErrorDetails]]:
        """The operations that were refused alone: what is wrong, by position."""
        return self._refused

    @property
    def placed(self) -> list[tuple[int, Operation]]:
        """The other operations with their positions."""
        places = range(len(self.operations) + len(self._refused))
        return list(
            zip((place for place in places if place not in self._refused), self.operations, strict=True)
        )

    @model_validator(mode="wrap")
    @classmethod
    def _each_on_its_own(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            bulk = handler(value)
        except ValidationError as error:
            wrong = _without_tags(error)
            apart = isinstance(value, dict) and value.get("atomic") is False
            if not (apart and all(map(_in_content, wrong))):
                raise _failed(wrong) from None
            refused: dict[int, list[ErrorDetails]] = {}
            for each in wrong:
                refused.setdefault(int(each["loc"][1]), []).append(each)
            rest = [each for place, each in enumerate(value["operations"]) if place not in refused]
            bulk = (
                handler(value | {"operations": rest})
                if rest
                else cls.model_construct(atomic=False, operations=[])
            )
            bulk.refused.update(refused)
        if wrong := list(_repeated(bulk.placed)):
            raise _failed(wrong)
        return bulk


def _repeated(placed: list[tuple[int, Operation]]) -> Iterator[ErrorDetails]:
    """One statement changes a row once: of two operations on a task the second is an error."""
    places: dict[int, int] = {}
    for place, operation in placed:
        if not isinstance(operation, CreateOperation):
            first = places.setdefault(operation.id, place)
            if first != place:
                message = f"operation {first} is about this task already"
                yield ErrorDetails(type="repeated", loc=("operations", place, "id"), msg=message, input=None)


def _without_tags(error: ValidationError) -> list[ErrorDetails]:
    """What is wrong, where the sender would look for it: pydantic adds the `op` to each place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    for each in found:
        where = each["loc"]
        if where[:1] == ("operations",):
            each["loc"] = where[:2] + where[3:]
        if each["type"].startswith("union_tag"):  # whose message has the whole of what was sent
            each["msg"] = "op is create, patch, complete, delete or restore"
    return found


def _in_content(wrong: ErrorDetails) -> bool:
    where = wrong["loc"]
    inside = where[:1] == ("operations",) and where[2:3] and where[2] in _CONTENT
    return bool(inside and (len(where) > 3 or wrong["type"] != "missing"))  # noqa: PLR2004 - deeper


def _failed(wrong: list[ErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data(
        BulkContent.__name__,
        [
            InitErrorDetails(
                type=PydanticCustomError(each["type"], each["msg"]),
                loc=each["loc"],
                input=None,
            )
            for each in wrong
        ],
    )


class Refusal(BaseModel):
    """Why an operation was not done."""

    model_config = ConfigDict(json_schema_extra=without_defaults)

    code: str = Field(description="As in a problem document.")
    detail: str
    current_version: int | SkipJsonSchema[None] = Field(
        None, description="With version_conflict: the task's version."
    )
    errors: list[Invalid] | SkipJsonSchema[None] = Field(
        None, description="With validation_failed: each thing that is wrong."
    )


class OperationResult(BaseModel):
    """What has become of an operation."""

    model_config = ConfigDict(json_schema_extra=without_defaults)

    status: int = Field(description="What a request of its own would have been answered; 424: undone.")
    task: Task | SkipJsonSchema[None] = Field(None, description="With 200 and 201.")
    replayed: bool | SkipJsonSchema[None] = Field(
        None, description="True where this key made the task before."
    )
    problem: Refusal | SkipJsonSchema[None] = Field(None, description="Where it was refused.")


class BulkAnswer(BaseModel):
    """One result for each operation, in their order."""

    results: list[OperationResult]
