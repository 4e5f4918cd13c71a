"""Refuse scores on what training saw: clips of the checkpoint, or people whom the protocol keeps apart."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from store.errors import FrameBankError

if TYPE_CHECKING:
    import pyarrow as pa

    from evaluate.source import Source
    from store.bank import Bank

NAMED = 3  # how many culprits a message names


class LeakageError(FrameBankError, ValueError):
    """Training clips or subjects in the part that would be scored."""


def refuse_overlap(where: str, train: Iterable[Any], test: Iterable[Any], what: str, fix: str) -> None:
    """Raise if a value is on both sides; None counts as unknown, not as equal.

    Args:
        where: Start of the message.
        train: Values that training saw.
        test: Values that would be scored.
        what: What the values are, in the plural.
        fix: What to do instead.

    Raises:
        LeakageError: Naming how many and the first few.
    """
    tested = {value for value in test if value is not None}
    shared = sorted({str(value) for value in train if value is not None and value in tested})
    if shared:
        names = ", ".join(shared[:NAMED]) + (", ..." if len(shared) > NAMED else "")
        raise LeakageError(f"{where}: {len(shared)} {what} were seen in training ({names}); {fix}")


def guard_checkpoint(
    where: str, seen: "pa.Table", dataset: str, test: "pa.Table", subjects_apart: bool
) -> None:
    """Refuse to score a checkpoint on what it was trained with, its held-out validation clips included.

    Args:
        where: The checkpoint, for the message.
        seen: Its training rows: dataset, clip_id, subject.
        dataset: Which dataset is scored.
        test: clip_id and subject of the clips to score.
        subjects_apart: Whether the protocol keeps subjects apart; then so must the checkpoint. (Cross-view
            and cross-setup protocols test the same people from elsewhere, by design.)

    Raises:
        LeakageError: If clips, or subjects where they matter, are on both sides.
    """
    own = [row for row in seen.to_pylist() if row["dataset"] == dataset]
    fix = "choose a checkpoint trained on this protocol's training part, or another --protocol"
    clips = test.column("clip_id").to_pylist()
    refuse_overlap(where, (row["clip_id"] for row in own), clips, f"of the {len(clips)} clips to score", fix)
    if subjects_apart:
        people = test.column("subject").to_pylist()
        refuse_overlap(where, (row["subject"] for row in own), people, "of the subjects to score", fix)


def refuse_same_recordings(
    where: str, bank: "Bank", seen: Iterable[tuple[str, str]], dataset: str, test: Iterable[str]
) -> None:
    """Refuse clips to score that training saw under another dataset's name (NTU 60 is a part of NTU 120).

    Two clips are one where they are overlapping spans of a file of the same content, in each modality that
    both have.

    Args:
        where: For the message.
        bank: Whose catalog knows the files.
        seen: (dataset, clip id) of what training saw; what is of the scored dataset is passed over.
        dataset: That of the clips to score.
        test: Their ids.

    Raises:
        LeakageError: Naming how many and the first few.
    """
    query = """
        WITH same AS (
            SELECT DISTINCT a.dataset AS other, a.clip_id AS trained, b.clip_id AS scored
            FROM media a JOIN media b USING (sample_hash)
            WHERE a.dataset = $1 AND b.dataset = $2
                AND coalesce(a.start_seconds, 0) < coalesce(b.end_seconds, 'inf'::DOUBLE)
                AND coalesce(b.start_seconds, 0) < coalesce(a.end_seconds, 'inf'::DOUBLE))
        SELECT trained, scored FROM same WHERE NOT EXISTS (
            SELECT 1 FROM media a JOIN media b USING (modality)
            WHERE a.dataset = $1 AND a.clip_id = trained AND b.dataset = $2 AND b.clip_id = scored
                AND a.sample_hash <> b.sample_hash)
    """
    asked, known = set(test), set(seen)
    for other in sorted({name for name, _ in known} - {dataset}):
        found = [tuple(row.values()) for row in bank.sql(query, [other, dataset]).to_pylist()]
        again = [scored for trained, scored in found if (other, trained) in known and scored in asked]
        what = f"clips to score are recordings of {other} that"
        fix = "choose a checkpoint (or a dataset to learn from) whose training part does not hold them"
        refuse_overlap(where, again, again, what, fix)


def keeps_apart(train: Iterable[Any], test: Iterable[Any]) -> bool:
    """Whether no known value is on both sides, and both know some: what a cross-subject protocol does."""
    left = {value for value in train if value is not None}
    right = {value for value in test if value is not None}
    return bool(left) and bool(right) and not left & right


def guard(source: "Source", part: str) -> None:
    """Refuse a checkpoint that was trained on the part to score; see :func:`guard_checkpoint`."""
    if source.alignment is not None:
        refuse_seen(source, part, str(source.alignment.directory), source.alignment.training_rows())


def refuse_seen(source: "Source", part: str, where: str, seen: "pa.Table") -> None:
    """Refuse what was trained on clips (subjects, where they matter) of the part to score.

    Args:
        source: Dataset and protocol.
        part: To score.
        where: What was trained, for the message.
        seen: dataset, clip_id and subject of the clips that trained it.

    Raises:
        LeakageError: See :func:`guard_checkpoint`.
    """
    test = part_clips(source, part)
    others = [] if source.protocol is None else part_clips(source, part, other=True)["subject"].to_pylist()
    apart = keeps_apart(others, test["subject"].to_pylist())
    guard_checkpoint(where, seen, source.dataset, test, apart)
    rows = zip(seen["dataset"].to_pylist(), seen["clip_id"].to_pylist(), strict=True)
    refuse_same_recordings(where, source.bank, rows, source.dataset, test["clip_id"].to_pylist())


def part_clips(source: "Source", part: str, other: bool = False) -> "pa.Table":
    """clip_id and subject of a part's clips, or with ``other`` of all clips of the protocol's other parts."""
    if source.protocol is None:
        return source.bank.sql("SELECT clip_id, subject FROM clips WHERE dataset = ?", [source.dataset])
    query = f"""
        SELECT clip_id, subject FROM splits JOIN clips USING (dataset, clip_id)
        WHERE dataset = ? AND protocol = ? AND part {"<>" if other else "="} ?
    """
    return source.bank.sql(query, [source.dataset, source.protocol, part])
