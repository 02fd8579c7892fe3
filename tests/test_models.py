"""The wire models' bounds, which the published schema states and the database repeats."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import get_type_hints

import psycopg
import pytest
from psycopg import sql
from pydantic import TypeAdapter, ValidationError

from taskctl import client, models
from taskctl.bulk import OperationResult
from taskctl.dates import rfc3339
from taskctl.formats import fitting, record, table
from taskctl.list_query import ListQuery
from taskctl.models import Completion, Description, Task, TaskContent, TaskPatch, Title

CONTROL = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
WHITE_SPACE = "\u0020\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"
ECMA_SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
"""What `\\s` means in JSON Schema's dialect of regular expressions (ECMA-262)."""

SCHEMAS = {model: model.model_json_schema() for model in (TaskContent, TaskPatch)}

SAMPLES = [
    *("", "x", " ", "x" * 200, "x" * 201, "😀" * 200, "😀" * 201, "\u3000", "a b", "é", "\u200b", "\ufeff"),
    *(f" {'x' * 200} ", "x" * 200 + "\n", " x", "x ", "\u3000x", "x\u2003", f"x{' ' * 300}"),
    *("\tx", "x\n", "x\r\n", "\x0bx", "\x0cx", "\x85x", "x\x85", "\x1cx", "\n", "\x85", "\ufeffx", "x\u2028"),
    *(f"a{character}b" for character in CONTROL),
    *("a\u2028b", "a\u200bb", "a\u202eb", "a\ud7ffb", "a\ue000b", "a\U0010ffffb", "\\n", "$", "a\\b"),
]


def accepted(kind, value):
    try:
        return (TypeAdapter(kind).validate_python(value),)
    except ValidationError:
        return None


def fits(schema, text):
    """Whether a text satisfies a string's schema, with `pattern` read as ECMA-262 reads it."""
    pattern = schema.get("pattern", "").replace(r"\s", ECMA_SPACE)
    if pattern.endswith("$"):
        pattern = pattern[:-1] + r"\Z"
    long_enough = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
    return long_enough and re.search(pattern, text) is not None


@pytest.mark.parametrize(
    ("title", "stored"),
    [
        ("x", "x"),
        ("x" * 200, "x" * 200),
        ("x" * 201, None),
        ("😀" * 200, "😀" * 200),
        ("😀" * 201, None),
        ("e\u0301" * 100, "e\u0301" * 100),
        ("e\u0301" * 100 + "x", None),
        (f"  {'x' * 200}  ", "x" * 200),
        ("", None),
        (" ", None),
        (WHITE_SPACE, None),
        (f"{WHITE_SPACE}a  b{WHITE_SPACE}", "a  b"),
        ("\ttitle\r\n", "title"),
        ("a\ud800b", None),
        ("\udfff", None),
        (None, None),
        (1, None),
        (["x"], None),
    ],
    ids=lambda value: f"{value!a:.20}",
)
def test_title_is_trimmed_then_measured(title, stored):
    """A title is a text of 1 to 200 code points after white space at its ends was trimmed."""
    assert accepted(Title, title) == (None if stored is None else (stored,))


@pytest.mark.parametrize("character", CONTROL, ids=lambda character: f"U+{ord(character):04X}")
def test_control_characters_are_refused(character):
    """No control character stands within a title; in a description tab, newline and return may."""
    assert accepted(Title, f"a{character}b") is None
    text = f"a{character}b"
    assert accepted(Description, text) == ((text,) if character in "\t\n\r" else None)


def test_refusal_names_the_character():
    """Who sends a control character is told which one."""
    with pytest.raises(ValidationError, match=r"U\+009B"):
        TaskContent(title="a\x9bb")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *((value, True) for value in (None, "", " ", " kept ", "x" * 10_000, "😀" * 10_000, "a\r\n\tb")),
        *((value, False) for value in ("x" * 10_001, "😀" * 10_001, "a\ud800", 1, [])),
    ],
    ids=lambda value: f"{value!a:.20}",
)
def test_description_is_kept_as_it_is(text, good):
    """A description is null or at most 10 000 code points, and nothing of it is trimmed."""
    if good:
        assert TaskContent(title="x", description=text).description == text
    else:
        with pytest.raises(ValidationError):
            TaskContent(title="x", description=text)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda text: f"{text!a:.24}-{len(text)}")
@pytest.mark.parametrize("name", ["title", "description"])
def test_schema_agrees_with_what_is_accepted(name, sample):
    """The published schema allows a text exactly if the model does."""
    for model, published in SCHEMAS.items():
        schema = published["properties"][name]
        schema = next((each for each in schema.get("anyOf", ()) if each["type"] == "string"), schema)
        assert fits(schema, sample) == (accepted(model, {"title": "x"} | {name: sample}) is not None)


@pytest.mark.parametrize("model", [TaskContent, TaskPatch, Completion])
@pytest.mark.parametrize("value", [0, 1, "true", "false", "on", "", None, [], 1.0])
def test_completion_is_a_boolean(model, value):
    """Nothing but true and false says whether a task is done."""
    with pytest.raises(ValidationError):
        model.model_validate(
            {"title": "x", "completed": value} if model is not Completion else {"completed": value}
        )


@pytest.mark.parametrize("model", [TaskContent, TaskPatch, Completion, ListQuery])
@pytest.mark.parametrize("name", ["id", "Title", "completed ", "__proto__", ""])
def test_unknown_members_are_refused(model, name):
    """A member that no one knows is an error, and the schema says so."""
    body = {"title": "x"} if model in {TaskContent, TaskPatch} else {}
    model.model_validate(body)
    with pytest.raises(ValidationError):
        model.model_validate(body | {name: 1})
    assert model.model_json_schema()["additionalProperties"] is False


def test_repeats_of_the_models():
    """What the client and the formats, without pydantic, say of the wire is what the models say."""
    for typed, model in (
        (client.TaskDict, Task),
        (client.PageDict, models.TaskPage),
        (client.ChangesDict, TaskPatch),
        (client.ChangeDict, models.Change),
        (client.ChangePageDict, models.ChangePage),
        (client.ResultDict, OperationResult),
    ):
        assert get_type_hints(typed).keys() == model.model_fields.keys(), typed
    assert {"title", *get_type_hints(client.ContentDict)} == TaskContent.model_fields.keys()
    assert TaskContent(title="x").model_dump(mode="json") | {"title": ""} == fitting.DEFAULTS
    assert set(record.READ_ONLY) == Task.model_fields.keys() - TaskContent.model_fields.keys()
    assert sorted(table.COLUMNS) == sorted(Task.model_fields)


@pytest.mark.parametrize("extra", [{"a": ["\ud800"]}, {"\udfff": 1}])
def test_extra_is_unicode(extra):
    """Half of a surrogate pair in `extra` is refused in a sentence, and not in a codec's words."""
    with pytest.raises(ValidationError, match="must not contain a lone surrogate"):
        TaskContent(title="x", extra=extra)


def test_content_has_defaults():
    """What is left out of a task's content is empty and open; a title is required."""
    assert TaskContent(title="x").model_dump(mode="json") == {
        "title": "x", "description": None, "due_at": None, "priority": "none", "tags": [], "project": None,
        "recurrence": None, "time_zone": None, "extra": None, "completed": False,
    }  # fmt: skip
    with pytest.raises(ValidationError):
        TaskContent.model_validate({})
    assert TaskContent.model_json_schema()["required"] == ["title"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": "x"},
        {"description": None},
        {"description": ""},
        {"completed": False},
        {"title": "x", "completed": True},
    ],
    ids=repr,
)
def test_patch_knows_what_was_sent(body):
    """Left out is not null: what a patch sets is what was sent, no more."""
    patch = TaskPatch.model_validate(body)
    assert patch.model_fields_set == body.keys()
    assert patch.model_dump(exclude_unset=True) == body


@pytest.mark.parametrize("name", ["title", "completed"])
def test_patch_cannot_clear_what_has_no_empty_state(name):
    """Null clears a description only, and the schema shows no default for what is left out."""
    with pytest.raises(ValidationError):
        TaskPatch.model_validate({name: None})
    properties = TaskPatch.model_json_schema()["properties"]
    assert not any("default" in member for member in properties.values())
    assert "required" not in TaskPatch.model_json_schema()


def test_refusal_does_not_repeat_the_input():
    """What was sent does not come back in the words of the refusal."""
    with pytest.raises(ValidationError) as refusal:
        TaskContent.model_validate({"title": "hunter2\x00", "completed": "hunter2"})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "good"),
    [
        *(({"limit": limit}, True) for limit in ("1", "200", 50)),
        *(({"limit": limit}, False) for limit in ("0", "201", "-1", "x", "", "1.5", "9" * 30, None)),
        *(({"status": status}, True) for status in ("all", "pending", "completed")),
        *(({"status": status}, False) for status in ("", "ALL", "done", None)),
        *(({"order": order}, True) for order in ("asc", "desc")),
        *(({"order": order}, False) for order in ("", "DESC", "id")),
    ],
    ids=repr,
)
def test_list_parameters(parameters, good):
    """A list takes what the contract names, and nothing near it."""
    assert (accepted(ListQuery, parameters) is not None) == good


def test_list_defaults():
    """Without parameters a list is the first 50 tasks of any status, in ascending order of their ids."""
    assert ListQuery().model_dump(mode="json") == {
        "status": "all", "q": None, "tag": [], "project": None, "priority": None, "due": None,
        "completed_after": None, "completed_before": None, "tz": "UTC", "sort": "id", "order": "asc",
        "limit": 50, "cursor": None, "count": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 67, tzinfo=UTC), "2026-01-02T03:04:05.000067Z"),
        (
            datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30))),
            "2026-01-01T21:34:00.000000Z",
        ),
        (datetime(2025, 12, 31, 23, tzinfo=timezone(timedelta(hours=-3))), "2026-01-01T02:00:00.000000Z"),
        (datetime(99, 1, 2, tzinfo=UTC), "0099-01-02T00:00:00.000000Z"),
    ],
)
def test_moments_are_utc(moment, text):
    """A moment is written in UTC with microseconds and `Z`, whatever its zone was, by a task too."""
    assert rfc3339(moment) == text
    task = Task.model_validate(TASK | dict.fromkeys(("completed_at", "created_at", "updated_at"), moment))
    dumped = task.model_dump(mode="json")
    assert {dumped[name] for name in ("completed_at", "created_at", "updated_at")} == {text}
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_moments_have_a_zone():
    """A moment without a time zone is no moment."""
    with pytest.raises(ValidationError):
        Task.model_validate(TASK | {"created_at": "2026-01-02T03:04:05"})


TASK = {
    "id": 1, "user_id": "a", "title": "x", "description": None, "due_at": None, "priority": "none",
    "tags": [], "project": None, "recurrence": None, "time_zone": None, "extra": None, "completed": True,
    "completed_at": None, "next_id": None, "deleted_at": None, "version": 1,
    "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
}  # fmt: skip


ROW = {"user_id": "a", "id": 1, "title": "x", "completed": False, "version": 1}
KEY = {"idempotency_key": "k", "idempotency_digest": b""}

REFUSED = {
    "task_id_positive": [{"id": 0}, {"id": -1}],
    "task_user_id_length": [{"user_id": ""}, {"user_id": "x" * 256}],
    "task_title_length": [{"title": ""}, {"title": "x" * 201}],
    "task_title_one_line": [{"title": f"a{each}b"} for each in CONTROL[1:]],
    "task_description_length": [{"description": "x" * 10_001}],
    "task_description_text": [{"description": f"a{each}b"} for each in CONTROL[1:] if each not in "\t\n\r"],
    "task_completed_at_matches": [{"completed": True}, {"completed_at": "now"}],
    "task_version_positive": [{"version": 0}],
    "task_idempotency_key_length": [KEY | {"idempotency_key": key} for key in ("", "x" * 256)],
    "task_idempotency_digest_matches": [{"idempotency_key": "k"}, {"idempotency_digest": b""}],
    "task_due_at_range": [{"due_at": "0001-01-01 00:00Z BC"}, {"due_at": "10000-01-01 00:00Z"}],
    "task_due_all_day_is_midnight": [{"due_at": "2026-11-30 00:00+01:00", "due_all_day": True}],
    "task_due_all_day_has_day": [{"due_all_day": True}],
    "task_priority_range": [{"priority": -1}, {"priority": 4}],
    "task_tags_list": [{"tags": [f"t{n}" for n in range(33)]}, {"tags": ["a", None]}],
    "task_tags_length": [{"tags": ["x" * 65]}, {"tags": [""]}],
    "task_project_length": [{"project": ""}, {"project": "x" * 101}],
    "task_project_one_line": [{"project": f"a{each}b"} for each in CONTROL[1:]],
    "task_recurrence_length": [{"recurrence": text, "due_at": "now"} for text in ("", "x" * 501)],
    "task_recurrence_has_due": [{"recurrence": "FREQ=DAILY"}],
    "task_time_zone_length": [{"time_zone": ""}, {"time_zone": "x" * 65}],
    "task_extra_length": [{"extra": f'{{"a":"{"x" * 8192}"}}'}],
    "task_extra_object": [{"extra": "[]"}, {"extra": "null"}],
    "task_next_id_positive": [{"next_id": 0}],
}
ALLOWED = [
    *({}, {"id": 2**63 - 1}, {"user_id": "😀" * 255}, {"title": "😀" * 200}, {"title": "a\u2028\u00a0b"}),
    *({"description": ""}, {"description": "😀" * 10_000}, {"description": "a\t\r\nb"}),
    *({"due_at": "9999-12-31 23:59:59.999999Z"}, {"due_at": "0001-01-01 00:00Z", "due_all_day": True}),
    *({"tags": ["😀" * 64] * 32}, {"project": "😀" * 100}, {"extra": "{}"}, {"priority": 3}),
    *({"recurrence": "x" * 500, "due_at": "now"}, {"time_zone": "x" * 64}, {"next_id": 1}),
    *({"completed": True, "completed_at": "now"}, KEY | {"idempotency_key": "k" * 255}),
]


@pytest.fixture(scope="module")
def shared(database_url):
    with psycopg.connect(database_url) as connection:
        yield connection
        connection.rollback()


def insert(connection, changes):
    """The name of the constraint that refuses the row, or None."""
    row = ROW | changes
    names, values = map(sql.SQL(", ").join, (map(sql.Identifier, row), map(sql.Placeholder, row)))
    statement = sql.SQL("INSERT INTO task ({}) VALUES ({})").format(names, values)
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement, row)
    except psycopg.errors.CheckViolation as error:
        return error.diag.constraint_name
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_checks_refuse(shared, name):
    """Each check constraint refuses what it is named for."""
    assert {insert(shared, changes) for changes in REFUSED[name]} == {name}


@pytest.mark.parametrize("changes", ALLOWED, ids=lambda changes: f"{changes!a:.40}")
def test_checks_allow(shared, changes):
    """What the models accept can be stored."""
    assert insert(shared, changes) is None


def test_accounts_are_checked(shared):
    """An account has a user and counts from zero; with the checks of tasks, that is all there are."""
    for row in (("", 0), ("x" * 256, 0), ("a", -1)):
        with pytest.raises(psycopg.errors.CheckViolation), shared.transaction(force_rollback=True):
            shared.execute("INSERT INTO account VALUES (%s, %s)", row)
    for column in ("last_change", "quota_tasks", "quota_bytes"):
        with pytest.raises(psycopg.errors.CheckViolation), shared.transaction(force_rollback=True):
            shared.execute(
                sql.SQL("INSERT INTO account (user_id, last_task_id, {}) VALUES ('a', 1, -1)").format(
                    sql.Identifier(column)
                )
            )
    for row in (("a", 0, "created"), ("a", 1, "forgotten")):
        with pytest.raises(psycopg.errors.CheckViolation), shared.transaction(force_rollback=True):
            shared.execute(
                "INSERT INTO change (user_id, number, type, task_id, task) VALUES (%s, %s, %s, 1, '{}')", row
            )
    for key in ("", "x" * 256):
        with pytest.raises(psycopg.errors.CheckViolation), shared.transaction(force_rollback=True):
            shared.execute("INSERT INTO bulk VALUES ('a', %s, '', '')", [key])
    found = shared.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0"
    ).fetchall()
    assert {name for (name,) in found} == {
        *REFUSED, "account_user_id_length", "account_last_task_id_positive", "account_last_change_positive",
        "account_quota_tasks_positive", "account_quota_bytes_positive",
        "change_number_positive", "change_type_known", "bulk_key_length",
    }  # fmt: skip
