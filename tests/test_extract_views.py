"""Views: the same for every process and modality, kept as they were first drawn, and spread as they claim."""

import numpy as np
import pytest

from encoders.protocols import CropBox
from extract import views
from extract.views import View, draw, views_of
from store.catalog import Catalog


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(tmp_path / "catalog.duckdb")
    made.create()
    return made


def test_view_zero_is_the_whole_clip():
    assert draw("ntu", "S001", 0) == View(None, (0.0, 1.0))


def test_draws_are_frozen():
    """A stored feature's view must be drawable again by any later version."""
    view = draw("ntu", "S001C001P001R001A001", 1)
    assert view == draw("ntu", "S001C001P001R001A001", 1)
    assert view.crop is not None
    numbers = [view.crop.top, view.crop.left, view.crop.height, view.crop.width, *view.window]
    assert np.allclose(numbers, FROZEN[:6], atol=1e-12) and view.crop.flip == FROZEN[6]


FROZEN = [0.0, 0.0020516691332256804, 1.0, 0.887366740871702, 0.08769215458556302, 0.9749315993068667, True]


def test_draws_depend_on_each_argument():
    drawn = {
        draw(*key) for key in [("a", "x", 1), ("b", "x", 1), ("a", "y", 1), ("a", "x", 2), ("ax", "", 1)]
    }
    assert len(drawn) == 5


def test_draws_stay_inside_the_frame_and_the_clip_and_cover_their_ranges():
    drawn = [draw("d", f"clip {i}", 1) for i in range(4000)]
    top, left, height, width = np.array(
        [[v.crop.top, v.crop.left, v.crop.height, v.crop.width] for v in drawn]
    ).T
    start, end = np.array([v.window for v in drawn]).T
    for low, extent in ((top, height), (left, width), (start, end - start)):
        assert low.min() >= 0 and (low + extent).max() <= 1 + 1e-12
    area = height * width
    assert 0.38 < area.min() < 0.42 and area.max() > 0.95
    assert abs(np.mean([v.crop.flip for v in drawn]) - views.FLIP) < 4 * 0.5 / 4000**0.5
    assert abs((end - start).mean() - 0.8) < 0.01


def test_the_catalog_keeps_what_was_drawn_first(catalog, monkeypatch):
    first = views_of(catalog, "d", [("x", 1), ("x", 0), ("y", 2)])
    assert set(first) == {("x", 1), ("y", 2)}
    assert first["x", 1] == draw("d", "x", 1)
    monkeypatch.setattr(views, "draw", lambda *key: View(CropBox(0.1, 0.1, 0.5, 0.5, True), (0.0, 0.5)))
    second = views_of(catalog, "d", [("x", 1), ("z", 1)])
    assert second["x", 1] == first["x", 1]
    assert second["z", 1].window == (0.0, 0.5)
    assert catalog.read("SELECT count(*) AS n FROM views")["n"].to_pylist() == [3]


def test_no_views_beside_zero_need_no_write(catalog):
    catalog.read_only = True
    assert views_of(catalog, "d", [("x", 0)]) == {}
