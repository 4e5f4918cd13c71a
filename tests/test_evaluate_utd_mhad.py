"""The UTD-MHAD tables: by hand, on a toy bank, and on the real recordings."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from utd_bank import CLASSES, toy_bank

from align.recipe import read_recipe
from evaluate.utd_mhad import HALVES, utd_mhad
from evaluate.utd_mhad_data import READ
from evaluate.utd_mhad_heads import HEADS, NAMED, PAIRS, RECIPE, variant
from evaluate.utd_mhad_scores import Scores, lines, together
from evaluate.utd_mhad_tables import (
    BEST_RAW,
    BEST_SINGLE,
    BY_NAMES,
    PROBE,
    RAW_CONCAT,
    RAW_LATE,
    SHOTS,
    _few,
)
from store.bank import Bank

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Bank:
    return toy_bank(tmp_path_factory.mktemp("utd") / "bank")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """The real recipe, cut short."""
    text = RECIPE.read_text().replace("epochs: 150", "epochs: 25").replace("hidden: 512", "hidden: 32")
    path = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    path.write_text(text)
    return str(path)


def table(bank: Bank, recipe: str, seeds: int = 1, **options) -> tuple[str, dict]:
    """What is printed, and {(half, task, method): (value, low, high)} of that run."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        given = {"modalities": "skeleton,inertial", "tables": "actions", "processes": 1} | options
        assert utd_mhad(str(bank.path), seeds, recipe, **given) == 0
    query = """
        SELECT detail ->> 'half' AS half, detail ->> 'task' AS task, detail ->> 'method' AS method,
            value, low, high, name
        FROM metrics
        WHERE run_id = (SELECT max(run_id) FROM runs WHERE command LIKE 'evaluate utd%')
    """
    rows = bank.sql(query).to_pylist()
    return out.getvalue(), {
        (row["half"], row["task"], row["method"]): (row["value"], row["low"], row["high"])
        for row in rows
        if row["name"] == "utd-mhad/score"
    }


@pytest.mark.slow
def test_the_table_scores_each_clip_once_and_repeats_itself(bank, recipe):
    printed, found = table(bank, recipe, seeds=2)
    again = table(bank, recipe, seeds=2, processes=2)[1]
    assert found == again
    halves = [half.name for half in HALVES["test"]]
    for half in (*halves, "both halves together"):
        assert f"{half}: percent" in printed and f"{half}: points over the baseline" in printed
        for task in ("skeleton action", "inertial action", "skeleton + inertial action"):
            for method in ("baseline", "probe", "aligned, named", "aligned, pairs"):
                value, low, high = found[half, task, method]
                assert low <= value <= high
                assert value > 3 / CLASSES  # learnable: far above chance
    for task, method in {(task, method) for _, task, method in found}:
        parts = [found[half, task, method][0] for half in halves]
        assert found["both halves together", task, method][0] == pytest.approx(np.mean(parts))  # equal halves
    assert found[halves[0], "inertial to skeleton R@1", "aligned, named"][0] > 3 / CLASSES
    assert found[halves[0], "text to skeleton R@1", "aligned, named"][0] > 3 / CLASSES


def test_halves_together_weigh_clips_not_halves():
    parts = []
    for hits in ([1.0], [0.0, 0.0, 0.0]):
        scores = Scores("half")
        scores.add("skeleton action", "baseline", np.zeros(len(hits)), 0.25)
        for seed in range(2):
            scores.add("skeleton action", "probe", np.array(hits) * seed, 0.25)
        parts.append(scores)
    probe = next(line for line in lines(together(parts)) if line.method == "probe")
    assert probe.clips == 4
    assert probe.each == [0.0, 0.25]
    assert probe.value.value == pytest.approx(0.125)
    assert probe.over["baseline"].value == pytest.approx(0.125)


def test_differences_are_to_rivals_and_of_rivals_only_to_those_before():
    scores = Scores("half")
    for method, hits in (("probe", [0, 0, 1, 1]), ("late", [0, 1, 1, 1]), ("aligned", [1, 1, 1, 1])):
        scores.add("actions", method, np.array(hits, float), 0.25)
    over = {
        line.method: {k: v.value for k, v in line.over.items()} for line in lines(scores, ("probe", "late"))
    }
    assert over == {"probe": {}, "late": {"probe": 0.25}, "aligned": {"probe": 0.5, "late": 0.25}}


@pytest.mark.parametrize("method", [NAMED, PAIRS, *HEADS])
def test_methods_differ_from_the_recipe_where_they_say(method):
    recipe = read_recipe(str(RECIPE))
    made = variant(recipe, ["skeleton", "depth"], method, seed=3)
    assert list(made.modalities) == ["skeleton", "depth", *(["text"] if method != PAIRS else [])]
    labelled = any("same_label" in loss.options for loss in made.losses)
    assert labelled == (method != PAIRS) and made.seed == 3
    for name in ("skeleton", "depth"):
        own, before = made.modalities[name], recipe.modalities[name]
        assert own.head == (HEADS[method][0] if method in HEADS else before.head)
        assert "steps" not in own.head_options or own.reduce == f"resample:{own.head_options['steps']}"
    assert (made.train, made.augment) == (recipe.train, recipe.augment)


def test_few_clips_are_as_many_of_each_class_and_drawn_anew_by_seed():
    labels = np.repeat(np.arange(CLASSES), 8)
    for count in SHOTS:
        rows, places = _few(labels, count, seed=0)
        assert np.bincount(labels[rows]).tolist() == [count] * CLASSES and len(set(rows)) == len(rows)
        for place in range(count):
            assert sorted(labels[rows[places == place]]) == list(range(CLASSES))
    assert not np.array_equal(_few(labels, 2, 0)[0], _few(labels, 2, 1)[0])


@pytest.mark.slow
def test_fusion_covers_every_subset_and_its_rivals_are_the_best(bank, recipe):
    _, found = table(bank, recipe, tables="fusion,shots,transfer")
    half = HALVES["test"][0].name
    subsets = ("skeleton", "inertial", "skeleton + inertial")
    value = {(task, method): found[half, task, method][0] for of, task, method in found if of == half}
    for task in subsets:
        assert value[task, BEST_SINGLE] == max(value["skeleton", RAW_LATE], value["inertial", RAW_LATE])
        assert value[task, BEST_RAW] >= max(value[one, RAW_CONCAT] for one in subsets)
        assert value[task, BY_NAMES] > 3 / CLASSES
    assert value["skeleton", RAW_LATE] == value["skeleton", RAW_CONCAT]
    for name in ("skeleton", "inertial", "all"):
        few, more = (value[f"{name}, {clips}", PROBE] for clips in ("1 clip", "4 clips"))
        assert few <= more + 0.05
    assert value["learnt on skeleton, asked inertial", NAMED] > 3 / CLASSES
    assert value["skeleton, 5 neighbours", PAIRS] > 3 / CLASSES


@pytest.mark.slow
def test_every_head_has_its_row(bank, recipe, tmp_path):
    hasty = tmp_path / "hasty.yaml"
    hasty.write_text(Path(recipe).read_text().replace("epochs: 25", "epochs: 5"))
    printed, found = table(bank, str(hasty), tables="heads", check="training")
    half = HALVES["training"][0].name
    for method in (PROBE, *HEADS, NAMED):
        assert found[half, "inertial action", method][0] > 1 / CLASSES
        assert f"\n{method} " in printed


@pytest.mark.slow
def test_choosing_never_touches_the_test_subjects(tmp_path, bank, recipe):
    without = toy_bank(tmp_path / "without", subjects=(1, 3))
    assert table(without, recipe, check="training")[1] == table(bank, recipe, check="training")[1]


def test_the_recipe_in_the_repository_can_be_read_and_covers_what_is_scored():
    config = read_recipe(str(RECIPE))
    assert {*READ, "text"} == set(config.modalities)
    assert config.text.source == "labels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bank", "nowhere"], "nowhere"),
        (["--recipe", "nowhere.yaml"], "--recipe: no file nowhere.yaml"),
        (["--modalities", "skeleton,inertial,rgb"], "no modality named 'rgb'"),
        (["--tables", "actions,head"], "no table named 'head' (did you mean 'heads'?)"),
    ],
)
def test_mistakes_are_one_line(bank, arguments, message):
    given = arguments if "--bank" in arguments else [*arguments, "--bank", str(bank.path)]
    done = subprocess.run(
        [sys.executable, "-m", "evaluate.utd_mhad", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_real_recordings_beat_the_baseline_where_we_say_so(shared, tmp_path):
    """Only what the README claims of both halves together; one seed, depth left out for speed."""
    root = shared / "data" / "utd_mhad"
    command = [sys.executable, "-m", "extract", "--dataset", "utd-mhad", "--root", str(root)]
    modalities = ["--modality", "skeleton,inertial,text", "--bank", str(tmp_path / "bank")]
    subprocess.run([*command, *modalities], cwd=ROOT, check=True, capture_output=True)
    _, found = table(Bank.open(tmp_path / "bank"), str(RECIPE))

    def value(task: str, method: str) -> float:
        return found["both halves together", task, method][0]

    assert value("skeleton action", "probe") > value("skeleton action", "baseline")
    assert value("inertial action", "probe") > value("inertial action", "baseline")
    retrieval = "inertial to skeleton R@1"
    assert value(retrieval, "aligned, named") > value(retrieval, "baseline") + 0.1
    assert value(retrieval, "aligned, pairs") > value(retrieval, "baseline")
