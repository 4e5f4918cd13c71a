"""The media files behind a part's clips, for the modes of training that look at them."""

from typing import TYPE_CHECKING, Any

from align.recipe import RecipeError

if TYPE_CHECKING:
    from store.bank import Bank

MEDIA = """
SELECT clip_id, label, subject, d.root, path, reader, options::VARCHAR AS options,
    coalesce(m.start_seconds, c.start_seconds) AS start_seconds,
    coalesce(m.end_seconds, c.end_seconds) AS end_seconds
FROM media m JOIN (SELECT * FROM clips WHERE dataset = $dataset AND ({where})) c USING (dataset, clip_id)
JOIN datasets d ON d.name = m.dataset
WHERE m.dataset = $dataset AND m.modality = $modality AND ($protocol IS NULL OR clip_id IN (
    SELECT clip_id FROM splits WHERE dataset = $dataset AND protocol = $protocol AND part = $part))
ORDER BY clip_id
"""


def media(
    bank: "Bank",
    dataset: str,
    modality: str,
    protocol: str | None = None,
    part: str | None = None,
    where: str | None = None,
) -> list[dict[str, Any]]:
    """A part's clips of a modality and where their files are, by clip id.

    Args:
        bank: The bank.
        dataset: Its dataset.
        modality: One modality.
        protocol: None: all clips.
        part: Of the protocol.
        where: SQL condition over the columns of ``clips``.

    Returns:
        clip_id, label, subject, root, path, reader, options (JSON text or None), start_seconds, end_seconds.

    Raises:
        RecipeError: If there is none; says which there are.
    """
    scope = {"dataset": dataset, "modality": modality, "protocol": protocol, "part": part}
    found = bank.sql(MEDIA.replace("{where}", where or "true"), scope).to_pylist()
    if found:
        return found
    query = "SELECT modality, count(*) AS n FROM media WHERE dataset = ? GROUP BY ALL ORDER BY ALL"
    there = [f"{row['modality']} ({row['n']} clips)" for row in bank.sql(query, [dataset]).to_pylist()]
    scoped = f" in {protocol}/{part}" if protocol else ""
    raise RecipeError(
        f"{bank.path}: no {modality} files of {dataset}{scoped}{f' where {where}' if where else ''}; "
        f"it has: {', '.join(there) or 'none'}; "
        f"python -m extract --dataset {dataset} --root FOLDER --register-only --bank {bank.path} looks again"
    )
