"""`evaluate report`: one whole, well-formed, escaped page; figures checked by what they draw."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from evaluate_bank import aligned_bank, joint_bank
from PIL import Image

from evaluate.fuse import fuse
from evaluate.geometry import geometry
from evaluate.page import Cell, Section, duration, page, picture, table
from evaluate.plots import (
    bars_svg,
    confusion_svg,
    curves_svg,
    histogram_svg,
    hue,
    interval_svg,
    mark_svg,
    scatter_svg,
    ticks,
)
from evaluate.probe import probe
from evaluate.provenance import kind
from evaluate.report import ReportError, report
from evaluate.report_tables import latest, results
from evaluate.retrieve import retrieve
from evaluate.search import search
from evaluate.space_map import positions, sample_rows
from evaluate.zero_shot import zero_shot
from store.places import thumbnail_path

HOSTILE = "<script>alert(\"x\")</script> & 'clip'"
VOID = {"meta", "img", "br"}


class Structure(HTMLParser):
    """Open tags as a stack; what is closed out of order is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bank with one run of everything and a picture, and its page."""
    bank, checkpoint = aligned_bank(tmp_path_factory)
    for clip in ("toy clip/0003", "toy clip/0004"):
        for strip in (False, True):
            path = thumbnail_path(bank, "toy", "depth", clip, strip)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 24), (200, 30, 30)).save(path)
    folder = str(bank.path)
    probe(folder)
    probe(folder, checkpoint=checkpoint)
    fuse(
        folder, modalities="skeleton,inertial", checkpoint=checkpoint, evidence="texts", against="raw-concat"
    )
    retrieve(folder, checkpoint=checkpoint)
    zero_shot(folder, checkpoint=checkpoint)
    geometry(folder, checkpoint=checkpoint)
    search("toy clip/0003", folder, like=True, checkpoint=checkpoint)
    out = tmp_path_factory.mktemp("report") / "sub folder" / "report.html"
    report(folder, str(out), checkpoint=checkpoint)
    return bank, out.read_text(encoding="utf-8")


def test_the_page_is_whole(written) -> None:
    _, text = written
    structure = Structure(text)
    anchors = {attrs["id"] for tag, attrs in structure.seen if tag == "section"}
    assert anchors == {"results", "map", "geometry", "searches", "confusions", "training", "bank", "runs"}
    assert {attrs["href"] for tag, attrs in structure.seen if tag == "a"} == {f"#{name}" for name in anchors}


def test_the_page_needs_no_network(written) -> None:
    structure = Structure(written[1])
    assert not [tag for tag, _ in structure.seen if tag in ("link", "iframe", "object")]
    assert all(attrs.get("src", "data:").startswith("data:") for _, attrs in structure.seen)
    assert not re.search(r"url\(|@import|https?://", written[1])


def test_the_page_follows_the_readers_colour_scheme(written) -> None:
    assert "prefers-color-scheme: dark" in written[1]
    assert not re.search(r'(fill|stroke|color)="#', written[1])


def test_what_was_recorded_is_on_the_page(written) -> None:
    bank, text = written
    rows = bank.sql(
        "SELECT name, value FROM metrics WHERE name IN ('probe/accuracy', 'retrieve/R@1')"
    ).to_pylist()
    for row in rows:
        assert f">{row['value'] * 100:.1f}<" in text
    assert "trained with captions" in text
    assert "Most confused" in text or "No confusion" in text


def test_pictures_are_in_the_page(written) -> None:
    images = [attrs for tag, attrs in Structure(written[1]).seen if tag == "img"]
    assert images
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") and attrs["alt"] for attrs in images)


def test_names_cannot_break_out_of_the_page(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    field_spec = bank.select("joint", "rgb")
    bank.register(
        "joint",
        clips=pa.table({"clip_id": [HOSTILE], "label": pa.array([0], pa.int32()), "label_name": [HOSTILE]}),
    )
    with bank.writer("joint", "rgb", field_spec.spec, [field_spec.field]) as writer:
        writer.add(HOSTILE, 0, {"embedding": np.ones((1, 1, 8))}, [0.0])
    retrieve(str(bank.path), by="label")
    zero_shot(str(bank.path))
    geometry(str(bank.path))
    search(HOSTILE, str(bank.path), like=True)
    out = tmp_path / "report.html"
    report(str(bank.path), str(out), title=HOSTILE)
    text = out.read_text(encoding="utf-8")
    structure = Structure(text)
    assert [tag for tag, _ in structure.seen].count("script") == 1
    assert "<script>alert" not in text
    assert "alert(" in text


def test_an_empty_bank_gives_a_page(tmp_path, capsys) -> None:
    bank = joint_bank(tmp_path / "bank")
    report(str(bank.path), str(tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    anchors = {attrs["id"] for tag, attrs in Structure(text).seen if tag == "section"}
    assert anchors == {"bank", "runs"}
    assert "no map:" in capsys.readouterr().err


def test_an_unwritable_place_is_named(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"--out .*file/r\.html: "):
        report(str(bank.path), str(tmp_path / "file" / "r.html"), checkpoint="none")


def row(value: float, run: str, **detail) -> dict:
    base = {"command": "evaluate probe", "dataset": "d", "protocol": "p", "name": "probe/accuracy"}
    return base | {"value": value, "run_id": run, "detail": detail}


def test_the_newest_of_each_kind_is_shown() -> None:
    rows = [
        row(0.1, "1", modality="depth", source="raw"),
        row(0.2, "2", modality="depth", source="aligned A", supervision=[]),
        row(0.3, "3", modality="depth", source="aligned B", supervision=["labels"]),
        row(0.4, "4", modality="depth", source="raw"),
        row(0.5, "5", modality="depth", source="aligned C", supervision=[]),
    ]
    assert [one["value"] for one in latest(rows)] == [0.3, 0.4, 0.5]
    assert kind(rows[1]["detail"]) != kind(rows[2]["detail"])


# Figures


def svg(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_confusion_draws_a_cell_for_each_count_and_names_it() -> None:
    matrix = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 0]])
    tree = svg(confusion_svg(matrix, ["a", "b & c", "d"], "x"))
    titles = [title.text for title in tree.iter("title")]
    assert titles == ["a → a: 8 (80%)", "a → b & c: 2 (20%)", "b & c → b & c: 5 (100%)", "d → a: 1 (100%)"]
    assert [rect.get("class") for rect in tree.iter("rect")] == ["field", "right", "wrong", "right", "wrong"]


def test_a_hundred_and_twenty_classes_still_fit() -> None:
    tree = svg(confusion_svg(np.eye(120), [str(k) for k in range(120)], "x"))
    assert float(tree.get("viewBox").split()[2]) < 520
    assert len(list(tree.iter("rect"))) == 121


def test_an_interval_lies_where_its_numbers_are() -> None:
    tree = svg(interval_svg(0.5, 0.25, 0.75, 0.1))
    dot = next(tree.iter("circle"))
    line = next(line for line in tree.iter("line") if line.get("class") == "interval")
    middle = (float(line.get("x1")) + float(line.get("x2"))) / 2
    assert float(dot.get("cx")) == pytest.approx(middle) == pytest.approx(66)


def test_curves_go_down_where_values_do_and_leave_out_what_is_not_finite() -> None:
    tree = svg(curves_svg({"loss": ([1, 2, 3], [3.0, float("nan"), 1.0])}, "epoch", "Loss"))
    points = [
        tuple(map(float, pair.split(","))) for pair in next(tree.iter("polyline")).get("points").split()
    ]
    assert len(points) == 2
    assert points[0][0] < points[1][0] and points[0][1] < points[1][1]  # SVG's y grows downwards
    assert curves_svg({"empty": ([], [])}, "epoch", "Loss") == ""


def test_histograms_have_a_step_a_bin_as_high_as_its_share() -> None:
    """Two series of other sizes and equal shapes are drawn alike; the empty third is not drawn."""
    series = {"a & b": [0, 2, 1, 0], "c": [0, 200, 100, 0], "none": [0, 0, 0, 0]}
    tree = svg(histogram_svg(series, np.linspace(0, 2, 5), "x"))
    paths = list(tree.iter("path"))
    assert len(paths) == 2 and paths[0].get("d") == paths[1].get("d")
    assert [title.text for title in tree.iter("title")] == ["a & b: 3", "c: 300"]
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", paths[0].get("d"))]
    assert len(heights) == 2  # bins 0 and 3 hold nothing and are not drawn
    floor = float(re.findall(r"V([\d.]+)$", paths[0].get("d"))[0])
    assert floor - heights[0] == pytest.approx(2 * (floor - heights[1]), abs=0.2)
    assert histogram_svg({"none": [0, 0]}, np.arange(3.0), "x") == ""


def test_bars_are_as_long_as_their_values_and_carry_interval_and_chance() -> None:
    tree = svg(bars_svg([("a", 0.5, 0.4, 0.6, 0.1), ("b", 0.25, None, None, None)], "Gaps"))
    first, second = (float(rect.get("width")) for rect in tree.iter("rect"))
    assert first == pytest.approx(2 * second, abs=0.2)
    kinds = [line.get("class") for line in tree.iter("line")]
    assert kinds == ["whisker", "chance"]
    assert [title.text for title in tree.iter("title")] == [
        "a: 0.500 [0.400, 0.600], by chance 0.100",
        "b: 0.250",
    ]
    collapsed = svg(bars_svg([("a", 0.0, 0.0, 0.0, 0.0)], "Gaps"))
    assert next(collapsed.iter("rect")).get("width") == "0.5"


def test_maps_keep_one_scale_and_mark_groups_apart() -> None:
    points = np.array([[0.0, 0], [2, 0], [0, 1]])
    tree = svg(scatter_svg(points, np.array([0, 1, -1]), ["rgb", "text", "rgb"], ["p", "q", "r"], ["u", "v"]))
    marks = [path for path in tree.iter("path")]
    assert [mark.get("data-class") for mark in marks] == ["0", "1", "-1"]
    assert [mark.get("class") for mark in marks] == ["p g0", "p g1", "p g0"]
    assert {text.text for text in tree.iter("text")} == {"u", "v"}
    assert svg(mark_svg(6)) is not None


def test_neighbouring_classes_have_far_hues() -> None:
    for label in range(60):
        gap = abs(hue(label) - hue(label + 1)) % 360
        assert min(gap, 360 - gap) > 60


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.9, 4.1, [1, 2, 3, 4]), (-3, 47, [0, 10, 20, 30, 40])],
)
def test_ticks_are_round_and_inside(low, high, expected) -> None:
    assert ticks(low, high) == pytest.approx(expected)


# Maps


def test_pca_is_the_best_plane_and_repeats() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 9)) * np.array([9, 4, 1, 1, 1, 1, 1, 1, 1])
    flat = positions(vectors, "pca")
    centred = vectors - vectors.mean(0)
    lengths = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=0), lengths[:2], rtol=1e-5)
    np.testing.assert_array_equal(flat, positions(vectors, "pca"))


def test_tsne_keeps_clusters_together() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    vectors = np.eye(8)[labels] * 10 + rng.normal(size=(60, 8))
    flat = positions(vectors, "t-sne")
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=2) + np.eye(60) * 1e9
    assert np.mean(labels[distance.argmin(1)] == labels) == 1.0


def test_a_collapsed_space_maps_to_a_point_and_two_points_to_an_error() -> None:
    assert np.ptp(positions(np.ones((9, 4)), "t-sne")) < 1e-6
    with pytest.raises(ValueError, match="2 points"):
        positions(np.ones((2, 4)), "pca")


def test_rows_are_drawn_evenly() -> None:
    rows = sample_rows({"a": 1000, "b": 5}, most=40)
    assert {name: len(chosen) for name, chosen in rows.items()} == {"a": 20, "b": 5}
    assert (np.diff(rows["a"]) > 0).all()


# Pieces of the page


def test_tables_escape_and_align() -> None:
    text = table([Cell("<n>", number=True)], [[Cell("1 < 2", number=True)], "<b>group</b>"])
    assert '<th class="number">&lt;n&gt;</th>' in text
    assert '<td class="number">1 &lt; 2</td>' in text
    assert '<td colspan="1"><b>group</b></td>' in text
    Structure(text)


def test_a_missing_picture_says_so(tmp_path) -> None:
    assert "no thumbnail" in picture(tmp_path / "none.jpg", "x")
    assert "no thumbnail" in picture(None, "x")


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.42, "3.4 s"), (42, "42 s"), (72, "1 min 12 s"), (4211, "1 h 10 min")]
)
def test_durations_read_well(seconds, text) -> None:
    assert duration(seconds) == text


def test_an_empty_page_is_still_a_page() -> None:
    Structure(page("t", "lead", [("1", "clip")], [Section("a", "A", "<p>b</p>")], "foot"))


def test_comparisons_have_a_line_a_task_and_a_column_a_method(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    for first in (0.1, 0.4):  # the second run replaces the first
        with bank.record_run("evaluate somewhere", {"dataset": "joint"}) as run:
            for method, value in (("baseline", first), ("ours", 0.75)):
                run.metric("somewhere/score", value, 9, 0.05, 0.95, task="walk", method=method, chance=0.25)
    text = results(bank, None)
    Structure(text)
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert re.findall(r">([^<>]+)</th>", rows[0]) == ["task", "baseline %", "ours %", "chance %", "n"]
    assert len(rows) == 2
    assert "40.0 <small>[5.0, 95.0]</small>" in rows[1]
    assert '<td class="number strong">75.0' in rows[1]


def test_comparisons_are_apart_by_table_and_differences_are_of_all_parts_together(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    with bank.record_run("evaluate somewhere", {"dataset": "joint"}) as run:
        parts = (("a", "one half", 0.5, 0.25), ("a", "both", 0.75, 0.5), ("b", "both", 0.2, 0.1))
        for name, part, ours, gain in parts:
            common = {"table": name, "half": part, "task": "walk", "chance": 0.25}
            method = f"ours {name}"
            run.metric("somewhere/score", 0.25, 9, 0.05, 0.95, method="baseline", **common)
            run.metric("somewhere/score", ours, 9, 0.05, 0.95, method=method, **common)
            run.metric("somewhere/gain", gain, 9, -0.1, 0.9, method=method, rival="baseline", **common)
    text = results(bank, None)
    Structure(text)
    first, second = text.split("<table>")[1:]
    assert "ours a" in first and "ours b" not in first and "ours a" not in second
    assert first.index(">one half<") < first.index(">both<") < first.index(">points over the baseline, both<")
    assert "+50.0 <small>[-10.0, 90.0]</small>" in first and "+25.0" not in first
    assert "+10.0 <small>[-10.0, 90.0]</small>" in second


def test_unknown_metrics_are_listed_as_they_are(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    with bank.record_run("evaluate elsewhere", {"dataset": "joint"}) as run:
        run.metric("elsewhere/words", 1234.5, 9, unit="<b>")
        run.metric("elsewhere/share", 0.5, 9, 0.4, 0.6)
    text = results(bank, None)
    Structure(text)
    assert "unit &lt;b&gt;" in text
    assert "1234" in text and 'class="plot mini"' in text
    assert results(bank, "another") == ""


def test_the_setting_of_a_number_is_beside_it(tmp_path) -> None:
    """Part, shots, teacher, the dataset of the alignment, class names told, and what was unseen."""
    bank = joint_bank(tmp_path / "bank")
    common = {"modality": "ir", "chance": 0.25, "features": "f"}
    aligned = {"source": "aligned ABCDEFGH", "aligned_on": "far", "supervision": ["labels"]}
    with bank.record_run("evaluate probe", {"dataset": "joint", "protocol": "cs", "part": "val"}) as run:
        detail = {**common, **aligned, "shots": 5, "learn_from": "depth", "learn_dataset": "near"}
        run.metric("probe/accuracy", 0.5, 9, 0.4, 0.6, **detail)
    with bank.record_run("evaluate zero-shot", {"dataset": "joint", "protocol": "cs", "part": "test"}) as run:
        for name, value in (("accuracy", 0.5), ("seen_accuracy", 0.75), ("harmonic_mean", 0.375)):
            run.metric(f"zero-shot/{name}", value, 9, 0.3, 0.8, **common, **aligned, prompt_set="words")
    with bank.record_run("evaluate knn", {"dataset": "joint", "protocol": "cs"}) as run:
        run.metric("knn/accuracy", 0.5, 9, 0.4, 0.6, **common, source="raw", supervision=["captions"])
    text = results(bank, None)
    Structure(text)
    assert '<span class="tag">raw</span> <span class="tag">trained with captions</span>' in text
    assert "probe: joint · cs val" in text and "zero-shot: joint · cs<" in text
    assert "5 shots, learnt from depth, learnt on near" in text
    assert "aligned …CDEFGH on far" in text and "trained with labels" in text
    assert "words, seen 75.0 %, harmonic mean 37.5 %" in text


def test_lines_stand_in_the_order_in_which_they_were_recorded(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    names = [f"view.{number}" for number in range(30)]
    with bank.record_run("evaluate probe", {"dataset": "joint"}) as run:
        for name in names:
            run.metric("probe/accuracy", 0.5, 9, 0.4, 0.6, modality=name, chance=0.5, source="raw")
    assert re.findall(r"view\.\d+", results(bank, None)) == names
