"""The way of one clip through the bank: file -> frames and times -> view -> encoder -> segment -> runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.errors import UnknownNameError
from store.layout import SegmentError
from store.manifest import read_manifest
from store.spec import FeatureSpec, canonical_json
from store.tables import TEXTS, text_id

if TYPE_CHECKING:
    from store.bank import Bank

CLIP = "SELECT * EXCLUDE (dataset) FROM clips WHERE dataset = ? AND clip_id = ?"
MEDIA = """
SELECT m.*, d.root, r.declared_frames, r.decoded_frames FROM media m
LEFT JOIN datasets d ON d.name = m.dataset
LEFT JOIN media_read r ON r.dataset = m.dataset AND r.clip_id = m.clip_id AND r.modality = m.modality
WHERE m.dataset = ? AND m.clip_id = ? ORDER BY m.modality
"""
KEYS = "SELECT modality, media_key FROM sources WHERE dataset = ? AND clip_id = ?"
FEATURES = """
SELECT s.modality, s.name, s.spec::VARCHAR AS spec, f.field, f.view, f.frames, f.first_frame, f.media_key,
    f.segment_id, g.location, g.tokens, g.dim, g.dtype
FROM features f JOIN feature_sets s USING (set_id) JOIN segments g USING (segment_id)
WHERE s.dataset = ? AND f.item_id = ? ORDER BY s.modality, s.name, f.field, f.view
"""
SIMILAR = """
SELECT dataset || '/' || clip_id AS name FROM clips ORDER BY jaro_winkler_similarity(name, ?) DESC LIMIT 5
"""
PARTS = "SELECT protocol, part FROM splits WHERE dataset = ? AND clip_id = ? ORDER BY ALL"
CAPTIONS = """
SELECT text, source FROM captions JOIN texts USING (text_id) WHERE dataset = ? AND clip_id = ? ORDER BY ALL
"""
VIEW = """
SELECT * EXCLUDE (dataset, item_id, "view") FROM views WHERE dataset = ? AND item_id = ? AND "view" = ?
"""
RUNS = """
SELECT DISTINCT r.run_id, r.command, r.status, r.started_at::VARCHAR AS started_at FROM run_sets u
JOIN runs r USING (run_id)
WHERE u.feature_set = ? AND coalesce(u.dataset, ?) = ? AND coalesce(u.modality, ?) = ? ORDER BY r.run_id
"""


def lines(bank: "Bank", clip: str) -> Iterator[str]:
    """The trace of ``clip`` (``<dataset>/<clip id>``), line by line.

    Raises:
        UnknownNameError: If the bank has no such clip.
    """
    dataset, item = _resolve(bank, clip)
    yield f"{'text' if dataset == TEXTS else 'clip'} {dataset}/{item}"
    if dataset == TEXTS:
        text = bank.sql("SELECT text FROM texts WHERE text_id = ?", [item])["text"][0].as_py()
        yield f"  text      {text!r}"
    else:
        yield from _clip_lines(bank, dataset, item)
    features = bank.sql(FEATURES, [dataset, item]).to_pylist()
    media = {row["modality"]: row for row in bank.sql(MEDIA, [dataset, item]).to_pylist()}
    keys = {row["modality"]: row["media_key"] for row in bank.sql(KEYS, [dataset, item]).to_pylist()}
    for modality in sorted(media.keys() | {row["modality"] for row in features}):
        yield ""
        yield modality
        if modality in media:
            yield from _media_lines(media[modality])
        elif modality in keys:
            yield f"  files     those of {' and '.join(modality.split('+'))}"
        elif dataset != TEXTS:
            yield "  file      not registered (imported features)"
        mine = [row for row in features if row["modality"] == modality]
        yield from _set_lines(bank, dataset, item, mine, keys.get(modality))
        if not mine:
            yield f"  features  none; python -m extract --dataset {dataset} --modality {modality}"
    yield from _failure_lines(bank, dataset, item)


def _resolve(bank: "Bank", clip: str) -> tuple[str, str]:
    dataset, _, item = clip.partition("/")
    if dataset == TEXTS:
        sql = "SELECT text_id FROM texts WHERE text_id = ? OR text_id = ?"
        found = bank.sql(sql, [item, text_id(item)])["text_id"].to_pylist()
        if not found:
            raise UnknownNameError(TEXTS, "text", item, [])
        return TEXTS, found[0]
    if item and bank.sql(CLIP, [dataset, item]).num_rows:
        return dataset, item
    homes = bank.sql("SELECT dataset FROM clips WHERE clip_id = ? ORDER BY 1", [clip])["dataset"].to_pylist()
    if len(homes) == 1:
        return homes[0], clip
    if homes:
        raise UnknownNameError(str(bank.path), "single clip", clip, [f"{home}/{clip}" for home in homes])
    raise UnknownNameError(str(bank.path), "clip", clip, bank.sql(SIMILAR, [clip])["name"].to_pylist())


def _clip_lines(bank: "Bank", dataset: str, item: str) -> Iterator[str]:
    row = bank.sql(CLIP, [dataset, item]).to_pylist()[0]
    yield "  clip      " + _named(row, leave=("clip_id",))
    splits = bank.sql(PARTS, [dataset, item])
    if splits.num_rows:
        yield "  parts     " + ", ".join(f"{one['protocol']}: {one['part']}" for one in splits.to_pylist())
    for one in bank.sql(CAPTIONS, [dataset, item]).to_pylist():
        yield f"  caption   {one['text']!r}" + (f" ({one['source']})" if one["source"] else "")


def _media_lines(row: dict[str, Any]) -> Iterator[str]:
    path = Path(row["root"] or "") / row["path"]
    yield f"  file      {path} ({_file_state(path, row)})"
    if row["decoded_frames"] is not None:
        yield f"  read      {row['decoded_frames']} frames decoded, {_text(row['declared_frames'])} declared"
    shown = ("reader", "options", "start_seconds", "end_seconds", "frames", "fps", "width", "height",
             "duration_seconds", "bytes", "sample_hash")  # fmt: skip
    yield "  media     " + _named({name: row[name] for name in shown})


def _file_state(path: Path, row: dict[str, Any]) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"not there now: {error.strerror}"
    if path.is_file() and row["bytes"] is not None and status.st_size != row["bytes"]:
        return f"changed since it was registered: {status.st_size} bytes now, {row['bytes']} then"
    return "there"


def _set_lines(
    bank: "Bank", dataset: str, item: str, rows: list[dict[str, Any]], key: str | None
) -> Iterator[str]:
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        spec = FeatureSpec.from_json(mine[0]["spec"])
        yield f"  encoder   {name}  space {spec.space_digest} {canonical_json(spec.space)}"
        yield f"  reading   {canonical_json(spec.reading)}"
        for row in mine:
            yield from _feature_lines(bank, dataset, item, row, key)
        used = bank.sql(RUNS, [name, dataset, dataset, mine[0]["modality"], mine[0]["modality"]]).to_pylist()
        for run in used:
            yield f"  run       {run['run_id']} {run['command']} ({run['status']}, {run['started_at']})"
        if not used:
            yield "  run       none used this feature set yet"


def _feature_lines(
    bank: "Bank", dataset: str, item: str, row: dict[str, Any], key: str | None
) -> Iterator[str]:
    shape = f"[{row['frames']}, {row['tokens']}, {row['dim']}] {row['dtype']}"
    stale = None not in (key, row["media_key"]) and key != row["media_key"]
    yield f"  field     {row['field']} view {row['view']}: {shape}" + (
        " STALE: the file changed" if stale else ""
    )
    yield f"    view    {_view(bank, dataset, item, row['view'])}"
    yield f"    times   {_times(bank.path / row['location'], item, row['view'])}"
    last = row["first_frame"] + row["frames"] - 1
    yield f"    segment {row['location']} frames {row['first_frame']} to {last}"


def _view(bank: "Bank", dataset: str, item: str, view: int) -> str:
    rows = bank.sql(VIEW, [dataset, item, view]).to_pylist()
    if rows:
        return _named(rows[0])
    return "the whole clip, no flip" if view == 0 else "not recorded"


def _times(path: Path, item: str, view: int) -> str:
    try:
        manifest, _ = read_manifest(path)
    except SegmentError as error:
        return f"unknown: {error}"
    for row in manifest.to_pylist():
        if (row["item_id"], row["view"]) == (item, view):
            shown = [f"{time:.3g}" for time in row["times_seconds"]]
            return " ".join(shown[:6] + (["..."] if len(shown) > 7 else []) + shown[6:][-1:]) + " s"
    return "unknown: not in the segment's manifest; `python -m store check` tells more"


def _failure_lines(bank: "Bank", dataset: str, item: str) -> Iterator[str]:
    sql = "SELECT * FROM failures WHERE dataset = ? AND clip_id = ? ORDER BY last_at"
    for row in bank.sql(sql, [dataset, item]).to_pylist():
        yield ""
        what = f"{row['modality']} {row['feature_set']} at {row['stage']}, {row['attempts']} times"
        yield f"failed      {what}: {row['error']}"


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _named(row: dict[str, Any], leave: tuple[str, ...] = ()) -> str:
    pairs = ((name, value) for name, value in row.items() if value is not None and name not in leave)
    return ", ".join(f"{name} {value}" for name, value in pairs) or "nothing known"
