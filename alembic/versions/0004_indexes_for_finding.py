"""Indexes for sorting, filtering and searching."""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

MARKS = r"\u0300-\u036F\u0591-\u05BD\u05BF\u05C1-\u05C7\u064B-\u065F\u0670"
SEPARATORS = (
    r"\u0001-\u002F\u003A-\u0060\u007B-\u00BF\u00D7\u00F7\u055A-\u055F\u0589\u05BE\u05C0\u05F3\u05F4"
    r"\u060C\u061B\u061F\u066A-\u066D\u06D4\u0964\u0965\u1680\u2000-\u25FF\u2E00-\u2E7F\u3000-\u3004"
    r"\u3008-\u3020\u3030\u30FB\uFE00-\uFE6F"
)
UNSPACED = r"\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3041-\u30FF\u3400-\u9FFF\uF900-\uFAFF"

TITLE_KEY = rf"""
CREATE OR REPLACE FUNCTION task_title_key(title text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT left(CASE WHEN octet_length(title) = char_length(title) THEN lower(title) ELSE translate(
    lower(regexp_replace(normalize(title, NFKD), '[{MARKS}]', '', 'g') COLLATE "default"), 'øłđħı', 'oldhi'
) END, 100)
$$
"""
FIND_TERMS = rf"""
CREATE OR REPLACE FUNCTION task_terms(
    owner text, done boolean, deleted timestamptz,
    title text, description text, tags text[], project text, priority smallint
) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
DECLARE
    prefix text := left(md5(owner), 8)
        || CASE WHEN deleted IS NOT NULL THEN 'd' WHEN done THEN 'c' ELSE 'p' END;
    words text := coalesce(title, '') || ' ' || coalesce(description, '');
    terms text[];
BEGIN
    IF octet_length(words) = char_length(words) THEN
        words := regexp_replace(lower(words), '[^a-z0-9]+', ' ', 'g');
    ELSE
        words := lower(regexp_replace(normalize(words, NFKD), '[{MARKS}]', '', 'g'));
        words := replace(replace(replace(words, 'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe');
        words := regexp_replace(translate(words, 'øłđħı', 'oldhi'), '[{SEPARATORS}]+', ' ', 'g');
        -- A word can begin at each of these letters.
        IF words ~ '[{UNSPACED}]' THEN
            words := words || ' ' || coalesce((
                SELECT string_agg(substr(run, place, 8), ' ')
                FROM unnest(string_to_array(words, ' ')) AS run,
                     generate_series(2, least(char_length(run), 500)) AS place
                WHERE substr(run, place, 1) ~ '[{UNSPACED}]'
            ), '');
        END IF;
    END IF;
    words := regexp_replace(words, '([^ ]{{32}})[^ ]+', '\1', 'g');
    terms := string_to_array(replace(' ' || words, ' ', ' ' || prefix || 'w'), ' ')
        || string_to_array(replace(' ' || array_to_string(tags, ' '), ' ', ' ' || prefix || 't'), ' ')
        || (prefix || 'j' || project) || (prefix || 'p' || priority);
    RETURN array_to_tsvector(array_remove(array_remove(array_remove(array_remove(
        terms, NULL), ''), prefix || 'w'), prefix || 't'));
END
$$
"""

LIVE = "deleted_at IS NULL"

INDEXES = (
    ("completed_id_live", "user_id, completed, id", LIVE),
    ("completed_due", "user_id, completed, coalesce(due_at, 'infinity'), id", LIVE),
    ("completed_priority", "user_id, completed, priority, id", LIVE),
    ("completed_updated", "user_id, completed, updated_at, id", LIVE),
    ("completed_title", 'user_id, completed, task_title_key(title COLLATE "C"), id', LIVE),
    ("completed_at", "user_id, completed_at, id", f"completed AND {LIVE}"),
    ("trash", "user_id, id", "deleted_at IS NOT NULL"),
)
TERMS = "task_terms(user_id, completed, deleted_at, title, description, tags, project, priority)"
OLD = "task_user_id_completed_id_idx"


def upgrade() -> None:
    # As in 0002: outside a transaction, and what a build left behind that was cut off is dropped first.
    with op.get_context().autocommit_block():
        for function in (TITLE_KEY, FIND_TERMS):
            op.execute(function)
        _drop()
        for name, columns, condition in INDEXES:
            op.execute(
                f"CREATE INDEX CONCURRENTLY task_user_id_{name}_idx ON task ({columns}) WHERE {condition}"
            )
        op.execute(f"CREATE INDEX CONCURRENTLY task_terms_idx ON task USING gin ({TERMS})")
        op.drop_index(OLD, "task", if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(OLD, "task", if_exists=True, postgresql_concurrently=True)
        op.create_index(OLD, "task", ["user_id", "completed", "id"], postgresql_concurrently=True)
        _drop()
        op.execute("DROP FUNCTION IF EXISTS task_terms, task_title_key")


def _drop() -> None:
    for name in (*(f"task_user_id_{name}_idx" for name, _, _ in INDEXES), "task_terms_idx"):
        op.drop_index(name, "task", if_exists=True, postgresql_concurrently=True)
