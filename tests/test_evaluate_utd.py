"""Statistics and linear read-outs by hand and against scikit-learn; the UTD-MHAD table on a toy bank."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoders.imu import IMU
from encoders.joints import JOINTS, Joints
from evaluate.baseline import BASELINES
from evaluate.readout import logistic_scores, read_out, ridge_scores, standardised
from evaluate.statistics import bootstrap, paired_bootstrap, seed_interval
from evaluate.utd_mhad import HALVES, READ, RECIPE, read_recipe, utd_mhad
from evaluate.utd_mhad_scores import Scores, lines, together
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 27

RNG = np.random.default_rng(0)


def blobs(n: int = 60, width: int = 100, classes: int = 4, noise: float = 1.0):
    labels = np.arange(n) % classes
    means = np.random.default_rng(1).normal(size=(classes, width))
    return means[labels] + noise * RNG.normal(size=(n, width)), labels


def test_seed_interval_is_students_t():
    low, high = seed_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    # t(0.975, 4) = 2.776, s = sqrt(2.5), s / sqrt(5) = sqrt(0.5)
    assert (low, high) == pytest.approx((3 - 2.7764 * 0.5**0.5, 3 + 2.7764 * 0.5**0.5), abs=1e-3)
    assert seed_interval(np.array([0.7])) == (0.7, 0.7)
    with pytest.raises(ValueError, match="no values"):
        seed_interval(np.array([]))


def test_bootstrap_of_a_share_is_as_wide_as_the_binomial_says():
    hits = (np.arange(400) < 240).astype(float)[None]
    found = bootstrap(hits)
    assert found.value == pytest.approx(0.6)
    reach = 1.96 * (0.6 * 0.4 / 400) ** 0.5
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)


def test_pairing_cancels_what_is_hard_for_both():
    rival = (RNG.random(200) < 0.5).astype(float)
    same = paired_bootstrap(np.stack([rival, rival]), rival)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = rival.copy()
    better[np.flatnonzero(rival == 0)[:20]] = 1.0
    gain = paired_bootstrap(better[None], rival)
    assert gain.value == pytest.approx(0.1)
    assert 0 < gain.low < 0.1 < gain.high < 0.2
    unpaired = bootstrap(better[None])
    assert gain.high - gain.low < unpaired.high - unpaired.low


def test_seeds_that_disagree_widen_the_interval():
    steady = np.tile((np.arange(1000) < 500).astype(float), (5, 1))
    moody = np.stack([np.full(1000, level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)])
    assert bootstrap(moody).high - bootstrap(moody).low > 3 * (bootstrap(steady).high - bootstrap(steady).low)


def test_unpaired_clips_are_refused():
    with pytest.raises(ValueError, match="10 clips against 9"):
        paired_bootstrap(np.zeros((2, 10)), np.zeros(9))


@pytest.mark.parametrize("width", [20, 300])
def test_ridge_is_scikit_learns(width):
    from sklearn.linear_model import RidgeClassifier

    (train, labels), (test, _) = blobs(width=width), blobs(24, width)
    size = ((train - train.mean(0)) ** 2).sum() / len(train)
    for strength, ours in zip((3.0, 0.01), ridge_scores(train, labels, test, 4, (3.0, 0.01)), strict=True):
        theirs = RidgeClassifier(alpha=strength * size).fit(train, labels).decision_function(test)
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("width", [20, 300])
def test_logistic_is_scikit_learns(width):
    from sklearn.linear_model import LogisticRegression

    (train, labels), (test, _) = blobs(width=width, noise=3.0), blobs(24, width)
    mean = train.mean(0)
    length = np.sqrt(((train - mean) ** 2).sum() / len(train))
    for strength, ours in zip((0.1, 0.01), logistic_scores(train, labels, test, 4, (0.1, 0.01)), strict=True):
        model = LogisticRegression(C=1 / (len(train) * strength), tol=1e-10, max_iter=5000)
        model.fit((train - mean) / length, labels)
        theirs = model.predict_log_proba((test - mean) / length)
        gap = ours - ours.mean(1, keepdims=True) - (theirs - theirs.mean(1, keepdims=True))
        assert np.abs(gap).max() < 1e-2


def test_a_class_that_was_never_taught_is_never_the_answer():
    train, labels = blobs(classes=3)
    for scorer in (ridge_scores, logistic_scores):
        scores = scorer(train, labels, train, 4, (0.1,))[0]
        assert scores.argmax(1).tolist() == labels.tolist()
        assert (scores[:, 3] < scores.max(1)).all()


def test_what_a_foot_does_not_do_stays_small_per_dim_but_not_per_channel():
    quiet, loud = 0.01 * RNG.normal(size=(8, 5, 1, 2)), RNG.normal(size=(8, 5, 1, 2))
    features = np.concatenate([quiet, loud], 2)
    shared, _ = standardised(features, features, "dim")
    own, _ = standardised(features, features, "channel")
    assert (shared.reshape(8, 5, 2, 2)[:, :, 0].std((0, 1)) < 0.05).all()
    np.testing.assert_allclose(own.reshape(8, 5, 2, 2).std((0, 1)), 1, atol=1e-3)


def test_per_clip_takes_away_what_does_not_change():
    features = RNG.normal(size=(6, 5, 2, 3))
    moved = features + RNG.normal(size=(6, 1, 2, 3))
    np.testing.assert_allclose(
        standardised(features, features, "clip")[0], standardised(moved, moved, "clip")[0], atol=1e-5
    )


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_nothing_but_the_scores_depends_on_the_clips_to_score(classifier):
    train, labels = blobs(48)
    groups = np.repeat(["a", "b"], 24)
    found = [
        read_out(train, labels, groups, test, 4, "none", classifier)
        for test in (RNG.normal(size=(9, 100)), 50 + RNG.normal(size=(3, 100)))
    ]
    assert found[0].strength == found[1].strength and found[0].held_out == found[1].held_out
    assert found[0].scores.shape == (9, 4)
    assert read_out(train, labels, groups, train, 4, "none", classifier).scores.argmax(1).tolist() == (
        labels.tolist()
    )


def test_the_baselines_origin_is_the_hips():
    sequences = RNG.normal(size=(2, 4, 20, 3))
    centred = BASELINES["skeleton"](sequences)
    assert not centred[:, :, 3].any()
    np.testing.assert_allclose(BASELINES["skeleton"](sequences + 5.0), centred, atol=1e-5)


def recordings(label: int, subject: int, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """Skeleton (T, 1, 20, 3) and inertial (T, 6): the right hand moves in a direction of the action's own."""
    rng = np.random.default_rng([label, subject, trial])
    direction = np.random.default_rng([99, label]).normal(size=3)
    body = np.random.default_rng(7).normal(size=(JOINTS, 3)) * (1 + 0.1 * subject)
    frames = int(rng.integers(12, 18))
    wave = np.sin(np.linspace(0, np.pi, frames) * (1 + label % 3))[:, None]
    clip = np.repeat(body[None], frames, 0) + 0.02 * rng.normal(size=(frames, JOINTS, 3))
    clip[:, 10:12] += (0.4 * wave * direction)[:, None]
    motion = np.concatenate([0.5 * wave * direction + [0, 0, 1], 80 * wave * np.roll(direction, 1)], 1)
    return clip[:, None].astype(np.float32), (motion + 0.05 * rng.normal(size=motion.shape)).astype(
        np.float32
    )


def toy_bank(path: Path, subjects: tuple[int, ...] = (1, 2, 3, 4)) -> Bank:
    """All 27 actions with two trials, through the real encoders; only ``subjects`` have features."""
    keys = [
        (label, subject, trial) for label in range(CLASSES) for subject in (1, 2, 3, 4) for trial in (1, 2)
    ]
    ids = [f"a{label + 1}_s{subject}_t{trial}" for label, subject, trial in keys]
    odd = [subject % 2 == 1 for _, subject, _ in keys]
    names = [f"action {label}" for label in range(CLASSES)]
    parts = [("cross-subject", "train", "test"), ("cross-subject-swapped", "test", "train")]
    bank = Bank.open(path, create=True)
    bank.register(
        "utd-mhad",
        clips=pa.table(
            {
                "clip_id": ids,
                "label": pa.array([key[0] for key in keys], pa.int32()),
                "label_name": [names[key[0]] for key in keys],
                "subject": [str(key[1]) for key in keys],
                "replication": [str(key[2]) for key in keys],
            }
        ),
        splits=pa.table(
            {
                "protocol": [name for name, _, _ in parts for _ in ids],
                "clip_id": ids * 2,
                "part": [one if is_odd else other for _, one, other in parts for is_odd in odd],
            }
        ),
        label_texts=pa.table(
            {
                "label": pa.array(range(CLASSES), pa.int32()),
                "label_name": names,
                "prompt_set": ["name"] * CLASSES,
                "text": names,
            }
        ),
    )
    for number, encoder in enumerate((Joints(), IMU())):
        modality = encoder.modalities[0]
        fields = [FieldSpec(one.name, one.tokens, one.dim) for one in encoder.fields.values()]
        with bank.writer("utd-mhad", modality, FeatureSpec(encoder.name, encoder.space), fields) as writer:
            for key, clip in zip(keys, ids, strict=True):
                if key[1] in subjects:
                    values = recordings(*key)[number]
                    times = np.arange(len(values)) / 30.0
                    prepared = encoder.prepare()(values, modality, None, times)
                    out = {name: array[0].numpy() for name, array in encoder.encode(_batch(prepared)).items()}
                    writer.add(clip, 0, out, times.astype(np.float32))
    rng = np.random.default_rng(0)
    with bank.writer(
        TEXTS, TEXT, FeatureSpec("minilm", {"revision": 0}), [FieldSpec("embedding", 1, 16)]
    ) as w:
        for text_id in bank.add_texts(names):
            w.add(text_id, 0, {"embedding": rng.normal(size=(1, 1, 16))}, np.zeros(1, np.float32))
    return bank


def _batch(prepared: np.ndarray):
    import torch

    return torch.from_numpy(prepared)[None]


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Bank:
    return toy_bank(tmp_path_factory.mktemp("utd") / "bank")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """The real recipe, cut short."""
    text = RECIPE.read_text().replace("epochs: 150", "epochs: 25").replace("hidden: 256", "hidden: 32")
    path = tmp_path_factory.mktemp("recipe") / "quick.yaml"
    path.write_text(text)
    return str(path)


def table(bank: Bank, recipe: str, seeds: int = 1, **options) -> tuple[str, dict]:
    """What is printed, and {(half, task, method): (value, low, high)} of that run."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert utd_mhad(str(bank.path), seeds, recipe, modalities="skeleton,inertial", **options) == 0
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
    again = table(bank, recipe, seeds=2)[1]
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


@pytest.mark.slow
def test_choosing_never_touches_the_test_subjects(tmp_path, bank, recipe):
    without = toy_bank(tmp_path / "without", subjects=(1, 3))
    assert table(without, recipe, check="training")[1] == table(bank, recipe, check="training")[1]


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
    assert probe.difference is not None and probe.difference.value == pytest.approx(0.125)


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
