"""The plan as a sequence over columns, and the size that it announces."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from extract_toys import Patches

from extract.progress import readable_bytes
from extract.sampling import Sampling
from extract.wanted import Plan, size_estimate


def test_a_plan_groups_the_fields_of_a_row_and_stays_a_table():
    rows = [("a", 0, "cls"), ("a", 0, "tokens"), ("a", 1, "cls"), ("b", 1, "cls"), ("b", 2, "tokens")]
    columns = dict(zip(("item_id", "view", "field"), map(list, zip(*rows, strict=True)), strict=True))
    plan = Plan(pa.table(columns | {"path": list("vwxyz")}))
    assert [(one.item_id, one.view, one.fields) for one in plan] == [
        ("a", 0, ("cls", "tokens")),
        ("a", 1, ("cls",)),
        ("b", 1, ("cls",)),
        ("b", 2, ("tokens",)),
    ]
    assert list(plan.keys()) == [("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert plan[-1].media["path"] == "z" and [one.view for one in plan[1:3]] == [1, 1]
    assert (plan.rows_of("cls"), plan.rows_of("tokens"), len(plan)) == (3, 2, 4)
    with pytest.raises(IndexError):
        plan[4]
    empty = Plan(
        pa.table({"item_id": pa.array([], pa.string()), "view": pa.array([], pa.int32()), "field": []})
    )
    assert len(empty) == 0 and list(empty.keys()) == []


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [
        (Sampling(frames=10), 4 * 10),
        (Sampling(fps=4.0), 4 * (1 + 2 + 3 + 1)),
        (Sampling(frames="all", max_frames=20), 10 + 20 + 20 + 10),
    ],
)
def test_the_size_estimate(sampling, frames):
    """cls (1 x 3) and embedding (1 x 3, one a clip) of clips of 1, 2, 3 and 1 s, the last by its span."""
    fields = ["cls", "embedding"] * 4
    table = pa.table(
        {
            "item_id": [item for item in "abcd" for _ in range(2)],
            "view": [0] * 8,
            "field": fields,
            "start_seconds": pa.array([None] * 6 + [5.0] * 2, pa.float64()),
            "end_seconds": pa.array([None] * 6 + [6.0] * 2, pa.float64()),
            "duration_seconds": pa.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 60.0, 60.0]),
            "fps": pa.array([10.0] * 8),
        }
    )
    task = SimpleNamespace(sampling=sampling, fields=("cls", "embedding"), encoder=Patches())
    size = size_estimate(task, Plan(table))
    assert size.fields == {"cls": frames * 3 * 2, "embedding": 4 * 3 * 2} and size.known
    total = readable_bytes((frames + 4) * 3 * 2)
    assert str(size) == f"about {total} (cls {readable_bytes(frames * 6)}, embedding 24 B)"
