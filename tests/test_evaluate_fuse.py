"""`evaluate fuse`: every subset is scored and recorded, rivals paired, subjects left out by cross-fitting."""

import json

import numpy as np
import pytest
from align_bank import Toy, make_bank
from evaluate_bank import aligned_bank, metrics_of, trained

from align.checkpoint import write_rows
from align.config import ModalityConfig
from align.end_to_end_config import EndToEndConfig
from evaluate.classification import Outcome
from evaluate.cross_fit import cross_fitted, realigned, recipe
from evaluate.fuse import Plan, fuse
from evaluate.fusion import BESIDE, subsets
from evaluate.fusion_sides import coverage, heads_saw, raw_source, sides_of
from evaluate.fusion_subsets import Task
from evaluate.leakage import LeakageError
from evaluate.probe import Lesson, probe_modality
from evaluate.report_fusion import fusion_table
from evaluate.report_tables import results
from evaluate.source import EvaluateError, open_sources
from evaluate.zero_shot import prompts
from store.errors import FrameBankError
from store.spec import FeatureSpec

NAMES = ["depth", "skeleton", "inertial"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def sources(bank, checkpoint: str | None = None):
    return open_sources(bank.path, None, None, checkpoint)


def accuracies(outcomes: list[Outcome]) -> dict[str, float]:
    scores = [score for one in outcomes for score in one.scores if score.name == "accuracy"]
    return {score.detail["modality"]: score.value for score in scores}


def test_every_subset_is_printed_recorded_and_shown(toy, capsys) -> None:
    bank, _ = toy
    assert fuse(str(bank.path), against="raw-late, raw-best") == 0
    printed = capsys.readouterr()
    assert "toy, cross-subject: learnt on train, scored on test, by what is PRESENT; raw" in printed.out
    assert "48 clips (38 have all modalities; lacking: depth 10)" in printed.err
    rows = metrics_of(bank, "evaluate fuse")
    wanted = {BESIDE.join(one) for one in subsets(sources(bank)[0].modalities())}
    assert len(wanted) == 7
    for name in ("accuracy", "balanced_accuracy", "over_raw-late", "over_raw-best"):
        found = [row for row in rows if row["name"] == f"fuse/{name}"]
        assert {row["detail"]["modality"] for row in found} == wanted
        assert len(found) == 7
        for row in found:
            assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9
            alone, has_depth = row["detail"]["modality"] == "depth", "depth" in row["detail"]["modality"]
            if name != "over_raw-best":  # where the rival is depth alone, 38 clips are paired
                assert row["n"] == (38 if alone else 48)
            assert row["detail"]["incomplete"] == (10 if has_depth and not alone else 0)
            assert (row["detail"]["chance"], row["detail"]["fusion"]) == (0.25, "late")
    page = results(bank, "toy")
    assert "fuse: toy · cross-subject" in page
    assert "over raw-best, points" in page
    own = fusion_table(rows)  # the page holds what other tests left in the bank, too
    assert own.count("●") == sum(len(one) for one in subsets(NAMES))
    assert own.count("○") == 7 * 3 - own.count("●")


def test_one_modality_alone_is_the_probe_and_rivals_are_raw(toy) -> None:
    """Late fusion of a single modality is that modality's linear probe, raw and aligned."""
    bank, checkpoint = toy
    names, rivals = ["depth", "skeleton"], ["raw-late", "raw-best", "raw-concat"]
    raw = accuracies(Task(sources(bank), ",".join(names), Plan()).outcomes("late", {}))
    task = Task(sources(bank, checkpoint), ",".join(names), Plan(), rivals)
    made = task.outcomes("late", {})
    own = accuracies(made)
    for given, found in ((None, raw), (checkpoint, own)):
        for name in names:
            alone = probe_modality(sources(bank, given), name, Lesson()).scores[0].value
            assert found[name] == pytest.approx(alone, abs=0.021)  # one clip of 48: strengths may differ
    leads = {
        (score.name, score.detail["modality"]): score
        for one in made
        for score in one.scores
        if score.name.startswith("over_")
    }
    assert len(leads) == 3 * 3
    for name in ("depth", "skeleton", "depth + skeleton"):
        assert leads["over_raw-late", name].value == pytest.approx(own[name] - raw[name])
        assert leads["over_raw-late", name].detail["rival"] == name
    assert leads["over_raw-best", "skeleton"].value == pytest.approx(own["skeleton"] - raw["skeleton"])
    best = max(names, key=raw.__getitem__)
    assert leads["over_raw-best", "depth + skeleton"].detail["rival"] == best


def test_the_rival_of_concatenated_features_is_fitted_to_the_subset(toy) -> None:
    bank, _ = toy
    task = Task(sources(bank), None, Plan(), ["raw-concat"])
    hits = task._rival("raw-concat", ("skeleton", "inertial"))
    pair = Task(sources(bank), "skeleton,inertial", Plan()).outcomes("concat", {})[-1].scores[0].value
    assert hits.hits.mean() == pytest.approx(pair)


def test_networks_are_trained_from_several_seeds(toy) -> None:
    bank, _ = toy
    plan = Plan(seeds=3)
    made = Task(sources(bank), "skeleton,inertial", plan).outcomes("attention", {"epochs": 3})
    each = made[-1].scores[0].detail["each"]
    assert len(each) == 3
    assert made[-1].predictions.guesses.shape == (3, 48)
    assert (
        len(Task(sources(bank), "skeleton,inertial", plan).outcomes("late", {})[-1].scores[0].detail["each"])
        == 1
    )


def test_raw_features_are_those_that_the_heads_read(toy) -> None:
    bank, checkpoint = toy
    source = sources(bank, checkpoint)[0]
    raw = raw_source(source, NAMES)
    assert raw.alignment is None
    for name in NAMES:
        assert raw.selection(name).feature_set == source.selection(name).feature_set
    assert not heads_saw(raw, sides_of(raw, NAMES, "train", "test").train)
    sides = sides_of(source, NAMES, "train", "test")
    assert heads_saw(source, sides.train)
    assert not heads_saw(source, sides.test)
    assert (sides.train.fresh, sides.test.fresh) == (False, True)
    assert coverage(sides.train) == "48 clips (38 have all modalities; lacking: depth 10)"
    assert coverage(sides.train.only(["skeleton"])).startswith("48 clips (0 have all")


class Tuned(Toy):
    """A toy whose encoders have weights of the bank's own making."""

    def spec(self, modality: str, frames: int = 0) -> FeatureSpec:
        made = super().spec(modality, frames)
        return FeatureSpec(made.encoder, {**made.space, "weights": f"tuned-{modality}"}, {"frames": frames})


def test_clips_that_trained_an_encoder_are_not_fresh_either(tmp_path) -> None:
    bank = make_bank(tmp_path / "bank", Tuned(clips=24, modalities=("skeleton", "inertial")))
    names = ["skeleton", "inertial"]
    assert sides_of(sources(bank)[0], names, "train", "test").train.fresh
    folder = bank.path / "runs" / "some run"
    folder.mkdir(parents=True)
    train = sources(bank)[0].clips("skeleton", "train")
    rows = {"dataset": "toy", "role": "train"}
    columns = {name: [value] * len(train) for name, value in rows.items()}
    write_rows(folder, {**columns, "clip_id": train.items.tolist(), "subject": train.subjects.tolist()})
    note = {
        "weights": "tuned-skeleton",
        "dataset": "toy",
        "protocol": "cross-subject",
        "training": {"part": "train", "clips": len(train)},
        "supervision": [],
        "encoder": {"initial": "random"},
    }
    (folder / "encoder_skeleton.json").write_text(json.dumps(note))
    sides = sides_of(sources(bank)[0], names, "train", "test")
    assert (sides.train.fresh, sides.test.fresh) == (False, True)


# Cross-fitting


def test_the_recipe_of_a_checkpoint_trains_it_again(toy) -> None:
    """Leaving nobody out gives the same heads, bit for bit."""
    bank, checkpoint = toy
    source = sources(bank, checkpoint)[0]
    again = realigned(source, "subject", ["nobody"])
    selection = source.selection("skeleton", "test")
    np.testing.assert_array_equal(
        again.embed("skeleton", selection), source.alignment.embed("skeleton", selection)
    )
    assert again.config["training"]["clips"] == source.alignment.config["training"]["clips"]


def test_heads_that_started_from_others_which_saw_everything_are_refused(toy) -> None:
    bank, first = toy
    second = trained(bank, modalities="skeleton,inertial", init=first, embedding=256)
    source = sources(bank, second)[0]
    with pytest.raises(EvaluateError, match="which saw the clips that would be left out"):
        cross_fitted(source, ["skeleton", "inertial"], Plan(cross_fit=3))


def test_cross_fitting_leaves_whole_subjects_out(toy, monkeypatch, capsys) -> None:
    bank, checkpoint = toy
    source = sources(bank, checkpoint)[0]
    left, plan = [], Plan(cross_fit=3, evidence=("probe", "texts"))
    from align import prepare

    def watched(config, loaded, *more, **options):
        left.append(sorted(set(loaded.data.columns["subject"])))
        return original(config, loaded, *more, **options)

    original = prepare.prepare
    monkeypatch.setattr(prepare, "prepare", watched)
    train, test = cross_fitted(source, NAMES, plan)
    assert sorted(left) == [["P000", "P001"], ["P000", "P002"], ["P001", "P002"]]
    assert "cross-fit 3 of 3: aligning without subject P00" in capsys.readouterr().err
    assert (len(train), len(test), train.kind) == (48, 48, "log-probabilities")
    for one in (train, test):
        for place, name in enumerate(NAMES):
            has = one.present[:, place]
            experts = np.exp(one.vectors[name][has].reshape(has.sum(), 2, 4))
            np.testing.assert_allclose(experts.sum(axis=2), 1, atol=1e-5)
            assert (one.vectors[name][~has] == 0).all()
    assert train.fresh
    guesses = train.vectors["skeleton"].reshape(48, 2, 4).argmax(axis=2)
    assert (
        (guesses == train.labels[:, None]).mean(axis=0) > 0.6
    ).all()  # chance 0.25: each is honest, and good


def test_a_name_of_the_recipe_can_be_fused_but_has_no_raw_features(toy) -> None:
    bank, _ = toy
    named = {"body": ModalityConfig(modality="skeleton"), "inertial": None}
    checkpoint = trained(bank, modalities=named)
    source = sources(bank, checkpoint)[0]
    assert recipe(source.alignment).modalities["body"].modality == "skeleton"
    assert accuracies(Task([source], None, Plan()).outcomes("mean", {}))["inertial + body"] > 0.6
    with pytest.raises(EvaluateError, match="body is the recipe's name for skeleton; without the checkpoint"):
        raw_source(source, ["body", "inertial"])


@pytest.mark.slow
def test_fusion_learns_on_cross_fitted_scores(toy, capsys) -> None:
    bank, checkpoint = toy
    common = {"checkpoint": checkpoint, "modalities": "skeleton,inertial", "seeds": 1}
    assert fuse(str(bank.path), methods="late,concat", cross_fit=3, evidence="probe,raw", **common) == 0
    printed = capsys.readouterr()
    assert "3 alignments" in printed.err
    assert "own training clips" not in printed.err
    rows = [row for row in metrics_of(bank, "evaluate fuse") if row["name"] == "fuse/accuracy"]
    assert {row["detail"]["fusion"] for row in rows} == {
        f"{name}, cross-fit 3 of probe+raw" for name in ("late", "concat")
    }
    assert min(row["value"] for row in rows) > 0.6
    fuse(str(bank.path), methods="concat", **common)
    assert "concat: learnt on embeddings of the checkpoint's" in capsys.readouterr().err


def test_texts_need_no_cross_fitting(toy, capsys) -> None:
    """Equal weights: the sum of cosines to the classes' texts over the modalities that are there."""
    bank, checkpoint = toy
    opened = sources(bank, checkpoint)
    task = Task(opened, "skeleton,inertial", Plan(evidence=("texts",)))
    made = task.outcomes("late", {})
    classes = prompts(opened[0])[-1].vectors
    clips = [opened[0].clips(name, "test") for name in ("skeleton", "inertial")]
    cosines = np.sum([one.vectors @ classes.T for one in clips], axis=0)
    expected = (cosines.argmax(axis=1) == clips[0].labels).mean()
    assert accuracies(made)["skeleton + inertial"] == pytest.approx(expected)
    assert made[-1].scores[0].detail["fusion"] == "late, of texts"
    assert not task.sides[0].train.fresh  # cosines of clips that the heads saw


def test_a_checkpoint_that_saw_none_of_the_clips_needs_no_cross_fitting(tmp_path, toy) -> None:
    bank = make_bank(tmp_path / "bank", Toy(clips=48, without_depth=0, modalities=("skeleton", "inertial")))
    make_other = {"name": "other", "clips": 48, "modalities": ("skeleton", "inertial"), "captions": False}
    make_bank(tmp_path / "bank", Toy(**make_other, seed=3))
    checkpoint = trained(bank, dataset="other", protocol="cross-subject")
    source = open_sources(bank.path, "toy", None, checkpoint)[0]
    assert sides_of(source, ["skeleton", "inertial"], "train", "test").train.fresh
    with pytest.raises(EvaluateError, match="saw none of these training clips; leave --cross-fit out"):
        cross_fitted(source, ["skeleton", "inertial"], Plan(cross_fit=2))


def test_recipe_needs_one(toy) -> None:
    from types import SimpleNamespace

    with pytest.raises(EvaluateError, match="here: no recipe in its config"):
        recipe(SimpleNamespace(config={}, directory="here"))
    asked = EndToEndConfig().as_json()
    with pytest.raises(EvaluateError, match="here: its encoders were trained with its heads"):
        recipe(SimpleNamespace(config={"asked": asked}, directory="here"))


# What is refused


def test_the_training_part_of_a_checkpoint_cannot_be_scored(toy) -> None:
    bank, checkpoint = toy
    with pytest.raises(LeakageError, match="48 of the 48 clips to score were seen in training"):
        fuse(str(bank.path), checkpoint=checkpoint, train_part="test", part="train")
    with pytest.raises(LeakageError, match="48 clips to score were seen in training"):
        fuse(str(bank.path), part="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "later"}, r"--methods: no fusion named 'later' \(did you mean 'late'\?\)"),
        ({"methods": ""}, "accepted: some of late, concat, mean, attention, cmvra"),
        ({"options": {"attention": {"epochs": 3}}}, "--methods 'late', --options for attention"),
        ({"options": {"late": {"epochs": 3}}}, "fusion late: no option 'epochs'; accepted: weights"),
        ({"methods": "mean"}, "--methods mean takes embeddings of one space, not features"),
        ({"methods": "cmvra"}, "cmvra takes vectors of one width"),
        ({"cross_fit": 3}, "--cross-fit needs --checkpoint"),
        ({"evidence": "probe"}, "--evidence probe needs --cross-fit 5; accepted without: texts"),
        ({"evidence": "texts"}, "zero-shot: raw depth features and text features lie in different spaces"),
        ({"cross_fit": 1}, "--cross-fit 1; accepted"),
        ({"seeds": 0}, "--seeds 0"),
        ({"evidence": "probes"}, r"--evidence: no evidence named 'probes' \(did you mean 'probe'\?\)"),
        ({"against": "raw"}, "--against: no rival named 'raw'.*there are: raw-best, raw-concat, raw-late"),
        ({"modalities": "depth"}, "fuse: depth alone; fusion takes two modalities or more"),
        ({"modalities": "depth,rgb"}, "no rgb features of toy; python -m extract"),
        ({"protocol": "none"}, "fuse needs a protocol with parts"),
    ],
)
def test_errors_say_what_is_accepted(toy, options, message) -> None:
    bank, _ = toy
    with pytest.raises(FrameBankError, match=message):
        fuse(str(bank.path), **options)


def test_a_failed_run_is_recorded(toy) -> None:
    bank, _ = toy
    with pytest.raises(FrameBankError):
        fuse(str(bank.path), modalities="depth")
    query = "SELECT status, config::VARCHAR AS config FROM runs WHERE command = ? ORDER BY started_at"
    last = bank.sql(query, ["evaluate fuse"]).to_pylist()[-1]
    assert last["status"] == "failed"
    assert json.loads(last["config"])["modalities"] == "depth"
