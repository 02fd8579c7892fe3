"""The functions of the database that its indexes for sorting and searching are made of.

They name nothing but what PostgreSQL itself has, so that an index can be restored and rebuilt under any
search path, and depend on no setting. What they answer is kept in indexes: a migration that changes one has
to build its index anew.
"""

MARKS = r"\u0300-\u036F\u0591-\u05BD\u05BF\u05C1-\u05C7\u064B-\u065F\u0670"
"""Accents of Latin, Greek and Cyrillic letters, and the vowels of Hebrew and Arabic ones."""

SEPARATORS = (
    r"\u0001-\u002F\u003A-\u0060\u007B-\u00BF\u00D7\u00F7\u055A-\u055F\u0589\u05BE\u05C0\u05F3\u05F4"
    r"\u060C\u061B\u061F\u066A-\u066D\u06D4\u0964\u0965\u1680\u2000-\u25FF\u2E00-\u2E7F\u3000-\u3004"
    r"\u3008-\u3020\u3030\u30FB\uFE00-\uFE6F"
)
"""White space, punctuation and symbols, between which words are; emoji are words."""

UNSPACED = r"\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3041-\u30FF\u3400-\u9FFF\uF900-\uFAFF"
"""Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""

TITLE_KEY = rf"""
CREATE OR REPLACE FUNCTION task_title_key(title text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT left(CASE WHEN octet_length(title) = char_length(title) THEN lower(title) ELSE translate(
    lower(regexp_replace(normalize(title, NFKD), '[{MARKS}]', '', 'g') COLLATE "default"), 'øłđħı', 'oldhi'
) END, 100)
$$
"""
"""What titles are sorted by: their letters, small and without accents, as far as anybody looks.

Called with a title of the collation "C", the answer is of it too."""

TERMS = rf"""
CREATE OR REPLACE FUNCTION task_terms(
    owner text, done boolean, deleted timestamptz,
    title text, description text, tags text[], project text, priority smallint
) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 20000 AS $$
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
"""What a task is found by, each with its owner and its state before it: `w` a word, `t` a tag, `j` its
project, `p` its priority.

A long description takes a millisecond. With less of a cost PostgreSQL would rather do that for each task of a
user that looks small than ask the index."""

ALL = (TITLE_KEY, TERMS)
