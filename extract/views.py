"""Views: several crops, flips and time windows of one clip, the same for all of its modalities.

View 0 is the deterministic evaluation view: the whole clip, and the frame as the encoder sees it by default.
Views 1, 2, ... are drawn from a hash of (dataset, item, view), so that every process and every modality draws
the same; what was drawn is kept in the catalog, so that training end to end can show pixels the way that a
stored feature saw them, also after this file has changed.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from encoders.protocols import CropBox
from store.catalog import Catalog

AREA = (0.4, 1.0)  # share of the frame that a crop keeps
ASPECT = (3 / 4, 4 / 3)  # of the crop, relative to the frame's own
FLIP = 0.5  # share of the views that are mirrored
DURATION = (0.6, 1.0)  # share of the clip's span that a view's time window keeps


@dataclass(frozen=True)
class View:
    """How a view sees a clip: where in the frame (None: the encoder's own way), when (0..1 of its span)."""

    crop: CropBox | None = None
    window: tuple[float, float] = (0.0, 1.0)


def draw(dataset: str, item_id: str, view: int) -> View:
    """The view's crop and window, a pure function of its three arguments.

    Raises:
        ValueError: If ``view`` is negative.
    """
    if view < 0:
        raise ValueError(f"views: view {view}; they count from 0")
    if view == 0:
        return View()
    area, aspect, top, left, flip, length, start = _uniforms(dataset, item_id, view, 7)
    area = _between(AREA, area)
    ratio = math.exp(_between((math.log(ASPECT[0]), math.log(ASPECT[1])), aspect))
    height, width = min(1.0, math.sqrt(area / ratio)), min(1.0, math.sqrt(area * ratio))
    box = CropBox(top * (1 - height), left * (1 - width), height, width, flip < FLIP)
    length = _between(DURATION, length)
    return View(box, (start * (1 - length), start * (1 - length) + length))


def views_of(
    catalog: Catalog, dataset: str, wanted: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], View]:
    """The views of (item, view) pairs: those that the catalog holds as it holds them, others drawn and added.

    View 0 is the same for every item and isn't stored.
    """
    pairs = sorted({(item, view) for item, view in wanted if view > 0})
    if not pairs:
        return {}
    drawn = _table(dataset, [(item, view, draw(dataset, item, view)) for item, view in pairs])
    kept = catalog.read(_KEPT, tables={"drawn": drawn})
    if kept.num_rows < len(pairs):
        with catalog.transaction() as connection:
            connection.register("drawn", drawn)
            connection.execute(_ADD)
            connection.unregister("drawn")
        kept = catalog.read(_KEPT, tables={"drawn": drawn})
    return {(row["item_id"], row["view"]): _view(row) for row in kept.to_pylist()}


_KEPT = "SELECT * FROM views SEMI JOIN drawn USING (dataset, item_id, view)"
_ADD = "INSERT INTO views BY NAME SELECT * FROM drawn ANTI JOIN views USING (dataset, item_id, view)"


def _view(row: dict[str, Any]) -> View:
    crop = CropBox(row["top"], row["left"], row["height"], row["width"], row["flip"])
    return View(crop, (row["start"], row["end"]))


def _table(dataset: str, views: list[tuple[str, int, View]]) -> pa.Table:
    rows = [
        {
            "dataset": dataset,
            "item_id": item,
            "view": view,
            "top": drawn.crop.top,
            "left": drawn.crop.left,
            "height": drawn.crop.height,
            "width": drawn.crop.width,
            "flip": drawn.crop.flip,
            "start": drawn.window[0],
            "end": drawn.window[1],
        }
        for item, view, drawn in views
        if drawn.crop is not None
    ]
    return pa.Table.from_pylist(rows)


def _uniforms(dataset: str, item_id: str, view: int, count: int) -> list[float]:
    """Numbers in [0, 1) that depend on nothing but the arguments (no library's generator)."""
    seed = f"{dataset}\0{item_id}\0{view}".encode()
    blocks = b"".join(hashlib.sha256(seed + b"\0%d" % part).digest() for part in range(-(-count // 4)))
    return [int.from_bytes(blocks[8 * k : 8 * k + 8], "big") / 2**64 for k in range(count)]


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])
