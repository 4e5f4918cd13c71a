"""The catalog's schema as numbered migrations, append-only: never edit one that has been released.

A catalog records which migrations it has had; opening it applies the later ones. ``reindex`` relies on
``features``, ``feature_sets`` and ``segments`` holding nothing that the segments' manifests do not hold.
"""

BASE_TABLES = """
CREATE TABLE datasets (
    name VARCHAR NOT NULL, adapter VARCHAR, root VARCHAR, config JSON, registered_at TIMESTAMPTZ
);
CREATE TABLE clips (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, label INTEGER, label_name VARCHAR,
    subject VARCHAR, camera VARCHAR, setup VARCHAR, replication VARCHAR,
    start_seconds DOUBLE, end_seconds DOUBLE, attributes JSON
);
CREATE TABLE splits (
    dataset VARCHAR NOT NULL, protocol VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, part VARCHAR NOT NULL
);
CREATE TABLE media (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, modality VARCHAR NOT NULL, path VARCHAR NOT NULL,
    reader VARCHAR, options JSON, start_seconds DOUBLE, end_seconds DOUBLE, frames BIGINT, fps DOUBLE,
    width INTEGER, height INTEGER, duration_seconds DOUBLE, bytes BIGINT, mtime DOUBLE,
    sample_hash VARCHAR, media_key VARCHAR
);
CREATE TABLE texts (text_id VARCHAR NOT NULL, text VARCHAR NOT NULL);
CREATE TABLE captions (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, text_id VARCHAR NOT NULL, source VARCHAR,
    start_seconds DOUBLE, end_seconds DOUBLE
);
CREATE TABLE label_texts (
    dataset VARCHAR NOT NULL, label INTEGER NOT NULL, label_name VARCHAR, prompt_set VARCHAR NOT NULL,
    text_id VARCHAR NOT NULL
);
CREATE TABLE views (
    dataset VARCHAR NOT NULL, item_id VARCHAR NOT NULL, view INTEGER NOT NULL,
    top DOUBLE, "left" DOUBLE, height DOUBLE, width DOUBLE, flip BOOLEAN, "start" DOUBLE, "end" DOUBLE
);
CREATE TABLE feature_sets (
    set_id BIGINT NOT NULL, dataset VARCHAR NOT NULL, modality VARCHAR NOT NULL, name VARCHAR NOT NULL,
    encoder VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL, space_digest VARCHAR NOT NULL, spec JSON NOT NULL,
    created_at TIMESTAMPTZ
);
CREATE TABLE segments (
    segment_id VARCHAR NOT NULL, set_id BIGINT NOT NULL, field VARCHAR NOT NULL, tokens INTEGER NOT NULL,
    dim INTEGER NOT NULL, dtype VARCHAR NOT NULL, frames BIGINT NOT NULL, bytes BIGINT NOT NULL,
    location VARCHAR NOT NULL, state VARCHAR NOT NULL, committed_at TIMESTAMPTZ
);
CREATE TABLE features (
    set_id BIGINT NOT NULL, segment_id VARCHAR NOT NULL, field VARCHAR NOT NULL, item_id VARCHAR NOT NULL,
    view INTEGER NOT NULL, first_frame BIGINT NOT NULL, frames INTEGER NOT NULL, media_key VARCHAR,
    origin VARCHAR NOT NULL
);
CREATE TABLE failures (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, modality VARCHAR NOT NULL, encoder VARCHAR NOT NULL,
    feature_set VARCHAR NOT NULL, stage VARCHAR, error VARCHAR, attempts INTEGER, media_key VARCHAR,
    last_at TIMESTAMPTZ
);
CREATE TABLE runs (
    run_id VARCHAR NOT NULL, command VARCHAR NOT NULL, config JSON, status VARCHAR NOT NULL,
    started_at TIMESTAMPTZ, finished_at TIMESTAMPTZ, wall_seconds DOUBLE, git_commit VARCHAR, versions JSON,
    error VARCHAR, directory VARCHAR
);
CREATE TABLE metrics (
    run_id VARCHAR NOT NULL, name VARCHAR NOT NULL, value DOUBLE, n BIGINT, low DOUBLE, high DOUBLE,
    detail JSON
);
CREATE TABLE run_sets (
    run_id VARCHAR NOT NULL, dataset VARCHAR, modality VARCHAR, feature_set VARCHAR NOT NULL
);
"""

FRIENDLY_VIEWS = """
CREATE VIEW clip_features AS
SELECT s.dataset, f.item_id AS clip_id, s.modality, s.encoder, s.name AS feature_set, f.field, f.view,
    f.frames, g.tokens, g.dim, c.label, c.label_name, c.subject, c.camera, c.setup, c.replication,
    coalesce(f.media_key <> m.media_key, false) AS stale, f.segment_id, f.first_frame
FROM features f
JOIN feature_sets s USING (set_id)
JOIN segments g USING (segment_id)
LEFT JOIN clips c ON c.dataset = s.dataset AND c.clip_id = f.item_id
LEFT JOIN media m ON m.dataset = s.dataset AND m.clip_id = f.item_id AND m.modality = s.modality;

CREATE VIEW clip_modalities AS
SELECT c.dataset, c.clip_id, c.label, c.label_name, c.subject, c.camera, c.setup, c.replication,
    coalesce(m.modalities, []) AS modalities
FROM clips c
LEFT JOIN (
    SELECT dataset, clip_id, list(DISTINCT modality ORDER BY modality) AS modalities
    FROM media GROUP BY dataset, clip_id
) m ON m.dataset = c.dataset AND m.clip_id = c.clip_id;

CREATE VIEW coverage AS
WITH items AS (
    SELECT dataset, modality, count(*) AS clips FROM media GROUP BY ALL
    UNION ALL SELECT '_texts', 'text', count(*) FROM texts HAVING count(*) > 0
), rows_of AS (
    SELECT set_id, field, count(DISTINCT item_id) AS encoded, count(*) AS rows,
        sum(frames)::BIGINT AS frames
    FROM features GROUP BY ALL
), sizes AS (
    SELECT set_id, field, any_value(tokens) AS tokens, any_value(dim) AS dim, sum(bytes)::BIGINT AS bytes
    FROM segments WHERE state = 'live' GROUP BY ALL
), failed AS (
    SELECT dataset, modality, feature_set, count(*) AS failed FROM failures GROUP BY ALL
), known AS (
    SELECT dataset, modality, name, encoder, set_id FROM feature_sets
    UNION ALL
    SELECT DISTINCT dataset, modality, feature_set, encoder, CAST(NULL AS BIGINT) FROM failures
    WHERE (dataset, modality, feature_set) NOT IN (SELECT (dataset, modality, name) FROM feature_sets)
)
SELECT coalesce(i.dataset, k.dataset) AS dataset, coalesce(i.modality, k.modality) AS modality, k.encoder,
    k.name AS feature_set, r.field, coalesce(i.clips, 0) AS clips, coalesce(r.encoded, 0) AS encoded,
    round(100 * coalesce(r.encoded, 0) / nullif(i.clips, 0), 1) AS percent,
    coalesce(x.failed, 0) AS failed, coalesce(r.frames, 0) AS frames, z.tokens, z.dim,
    coalesce(z.bytes, 0) AS bytes
FROM items i
FULL JOIN known k ON k.dataset = i.dataset AND k.modality = i.modality
LEFT JOIN rows_of r ON r.set_id = k.set_id
LEFT JOIN sizes z ON z.set_id = r.set_id AND z.field = r.field
LEFT JOIN failed x ON x.dataset = k.dataset AND x.modality = k.modality AND x.feature_set = k.name
ORDER BY ALL;

CREATE VIEW leaderboard AS
SELECT m.name AS metric, m.value, m.low, m.high, m.n, r.command, r.config ->> 'dataset' AS dataset,
    r.config ->> 'protocol' AS protocol, m.detail, r.config, r.run_id, r.started_at, r.wall_seconds
FROM metrics m JOIN runs r USING (run_id)
WHERE r.status = 'done'
ORDER BY metric, value DESC;
"""

# What reading a file showed, apart from `media`, which says what the listing says; a damaged file has fewer
# decoded_frames than declared_frames.
MEDIA_READ = """
CREATE TABLE media_read (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, modality VARCHAR NOT NULL, media_key VARCHAR,
    declared_frames BIGINT, decoded_frames BIGINT, fps DOUBLE, width INTEGER, height INTEGER,
    duration_seconds DOUBLE
);
"""

# Feature sets of several modalities at once (`rgb+depth`) are made from a file of each: replacing one of them
# makes the features stale. `sources` is `media` with a row for each clip that has all files of such a set.
JOINT_MEDIA = """
CREATE VIEW sources AS
SELECT dataset, clip_id, modality, media_key FROM media
UNION ALL
SELECT s.dataset, m.clip_id, s.modality, md5(string_agg(m.media_key, '|' ORDER BY m.modality)) AS media_key
FROM (
    SELECT DISTINCT dataset, modality, string_split(modality, '+') AS parts FROM feature_sets
    WHERE contains(modality, '+')
) s
JOIN media m ON m.dataset = s.dataset AND list_contains(s.parts, m.modality)
GROUP BY s.dataset, s.modality, s.parts, m.clip_id HAVING count(*) = len(s.parts);

CREATE OR REPLACE VIEW clip_features AS
SELECT s.dataset, f.item_id AS clip_id, s.modality, s.encoder, s.name AS feature_set, f.field, f.view,
    f.frames, g.tokens, g.dim, c.label, c.label_name, c.subject, c.camera, c.setup, c.replication,
    coalesce(f.media_key <> m.media_key, false) AS stale, f.segment_id, f.first_frame
FROM features f
JOIN feature_sets s USING (set_id)
JOIN segments g USING (segment_id)
LEFT JOIN clips c ON c.dataset = s.dataset AND c.clip_id = f.item_id
LEFT JOIN sources m ON m.dataset = s.dataset AND m.clip_id = f.item_id AND m.modality = s.modality;

CREATE OR REPLACE VIEW coverage AS
WITH items AS (
    SELECT dataset, modality, count(*) AS clips FROM sources GROUP BY ALL
    UNION ALL SELECT '_texts', 'text', count(*) FROM texts HAVING count(*) > 0
), rows_of AS (
    SELECT set_id, field, count(DISTINCT item_id) AS encoded, count(*) AS rows,
        sum(frames)::BIGINT AS frames
    FROM features GROUP BY ALL
), sizes AS (
    SELECT set_id, field, any_value(tokens) AS tokens, any_value(dim) AS dim, sum(bytes)::BIGINT AS bytes
    FROM segments WHERE state = 'live' GROUP BY ALL
), failed AS (
    SELECT dataset, modality, feature_set, count(*) AS failed FROM failures GROUP BY ALL
), known AS (
    SELECT dataset, modality, name, encoder, set_id FROM feature_sets
    UNION ALL
    SELECT DISTINCT dataset, modality, feature_set, encoder, CAST(NULL AS BIGINT) FROM failures
    WHERE (dataset, modality, feature_set) NOT IN (SELECT (dataset, modality, name) FROM feature_sets)
)
SELECT coalesce(i.dataset, k.dataset) AS dataset, coalesce(i.modality, k.modality) AS modality, k.encoder,
    k.name AS feature_set, r.field, coalesce(i.clips, 0) AS clips, coalesce(r.encoded, 0) AS encoded,
    round(100 * coalesce(r.encoded, 0) / nullif(i.clips, 0), 1) AS percent,
    coalesce(x.failed, 0) AS failed, coalesce(r.frames, 0) AS frames, z.tokens, z.dim,
    coalesce(z.bytes, 0) AS bytes
FROM items i
FULL JOIN known k ON k.dataset = i.dataset AND k.modality = i.modality
LEFT JOIN rows_of r ON r.set_id = k.set_id
LEFT JOIN sizes z ON z.set_id = r.set_id AND z.field = r.field
LEFT JOIN failed x ON x.dataset = k.dataset AND x.modality = k.modality AND x.feature_set = k.name
ORDER BY ALL;
"""

# Captions that were generated or imported, apart from the listing's (store/captions.py): which clips got
# any of which source, and from which file.
CAPTIONED = """
CREATE TABLE captioned (
    dataset VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, source VARCHAR NOT NULL, modality VARCHAR,
    media_key VARCHAR
);
"""

# (number, name, SQL): append below, never change what is above.
# Two numbers compare only under one setting: what was scored, on which alignment, told which labels or texts.
LEADERBOARD = """
CREATE OR REPLACE VIEW leaderboard AS
SELECT m.name AS metric, m.value, m.low, m.high, m.n, r.command, r.config ->> 'dataset' AS dataset,
    r.config ->> 'protocol' AS protocol, r.config ->> 'part' AS part,
    coalesce(m.detail ->> 'modality', m.detail ->> 'pair',
        (m.detail ->> 'query') || ' > ' || (m.detail ->> 'gallery')) AS modality,
    m.detail ->> 'source' AS source, m.detail ->> 'aligned_on' AS aligned_on,
    array_to_string(try_cast(m.detail -> 'supervision' AS VARCHAR[]), ', ') AS supervision,
    try_cast(m.detail ->> 'shots' AS BIGINT) AS shots, m.detail ->> 'learn_from' AS learn_from,
    m.detail, r.config, r.run_id, r.started_at, r.wall_seconds
FROM metrics m JOIN runs r USING (run_id)
WHERE r.status = 'done'
ORDER BY metric, value DESC;
"""

MIGRATIONS: list[tuple[int, str, str]] = [
    (1, "base tables", BASE_TABLES),
    (2, "friendly views", FRIENDLY_VIEWS),
    (3, "what reading the media showed", MEDIA_READ),
    (4, "media of several modalities at once", JOINT_MEDIA),
    (5, "captions that were generated or imported", CAPTIONED),
    (6, "leaderboard with the setting of each number", LEADERBOARD),
]
LATEST = MIGRATIONS[-1][0]
