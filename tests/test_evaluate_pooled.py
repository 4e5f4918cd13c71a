"""`evaluate pooled`: CMVRA's avgbacc by hand and by scikit-learn, means, and what cannot be pooled."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from align_bank import Toy, make_bank
from evaluate_bank import metrics_of
from sklearn.metrics import balanced_accuracy_score

from evaluate.knn import knn
from evaluate.pooled import Kept, alike, pooled, summary
from evaluate.predictions import Predictions, read_predictions, write_predictions
from evaluate.probe import probe
from evaluate.source import EvaluateError
from store.errors import FrameBankError

DETAIL = {"modality": "depth", "source": "raw", "features": "f", "chance": 0.5}


def said(labels: list[int], guesses: list[list[int]], prefix: str = "c") -> Predictions:
    """Hits follow from the guesses; a tie (-1) of two classes is half right."""
    truth, told = np.array(labels), np.array(guesses)
    hits = np.where(told == -1, 0.5, told == truth)
    return Predictions(
        DETAIL, np.array([f"{prefix}{row}" for row in range(len(labels))], object), truth, told, hits
    )


def kept(*several: Predictions) -> list[Kept]:
    return [Kept(f"r{number}", str(number), "test", one) for number, one in enumerate(several)]


def values(found: list[Kept]) -> dict[tuple[str, str], float]:
    scores, _ = summary("evaluate probe", found)
    return {(score.detail["over"].split(" ")[0], score.name): score.value for score in scores}


def test_by_hand() -> None:
    """Split 0: class 0 right 3 of 3, class 1 wrong. Split 1: class 1 right 3 of 4, class 0 wrong."""
    found = values(
        kept(said([0, 0, 0, 1], [[0, 0, 0, 0]], "a"), said([1, 1, 1, 1, 0], [[1, 1, 1, 0, 1]], "b"))
    )
    assert found["mean", "accuracy"] == pytest.approx((3 / 4 + 3 / 5) / 2)
    assert found["mean", "balanced_accuracy"] == pytest.approx((1 / 2 + 3 / 8) / 2)
    assert found["pooled", "accuracy"] == pytest.approx(6 / 9)
    assert found["pooled", "balanced_accuracy"] == pytest.approx((3 / 4 + 3 / 5) / 2)


def test_pooled_is_scikit_learns_balanced_accuracy_of_all_predictions() -> None:
    rng = np.random.default_rng(0)
    several = [(rng.integers(0, 5, 40), rng.integers(0, 5, 40)) for _ in range(3)]
    found = values(kept(*(said(a.tolist(), [b.tolist()], str(k)) for k, (a, b) in enumerate(several))))
    truth, told = (np.concatenate(columns) for columns in zip(*several, strict=True))
    assert found["pooled", "balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, told))
    each = [balanced_accuracy_score(a, b) for a, b in several]
    assert found["mean", "balanced_accuracy"] == pytest.approx(np.mean(each))


def test_ties_count_as_their_expectation_and_models_are_averaged() -> None:
    found = values(kept(said([0, 1], [[-1, -1], [0, 1]], "a"), said([0, 1], [[-1, -1], [1, 1]], "b")))
    assert found["pooled", "accuracy"] == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)


def test_clips_in_several_test_parts_are_averaged_over_but_not_pooled(capsys) -> None:
    found = values(kept(said([0, 1], [[0, 1]]), said([0, 1], [[0, 0]])))
    assert found == {("mean", "accuracy"): 0.75, ("mean", "balanced_accuracy"): 0.75}
    assert "2 clips are in several of these test parts" in capsys.readouterr().err


def test_parts_of_any_size_count_alike() -> None:
    weights = alike([np.ones(2), np.array([0.5, 1.5, 1.0, 1.0])])
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(weights, [1.5, 1.5, 0.375, 1.125, 0.75, 0.75])


def test_intervals_hold_their_value_and_narrow_with_more_splits() -> None:
    rng = np.random.default_rng(1)
    guesses = [(rng.random((1, 100)) < 0.3).astype(int).tolist() for _ in range(4)]
    widths = []
    for count in (2, 4):
        several = [said([0] * 100, each, str(k)) for k, each in enumerate(guesses[:count])]
        for score in summary("evaluate probe", kept(*several))[0]:
            assert score.low < score.value < score.high and score.n == 100 * count
        widths.append(score.high - score.low)
    assert widths[0] / widths[1] == pytest.approx(2**0.5, rel=0.1)


def test_other_numbers_of_models_are_refused() -> None:
    with pytest.raises(EvaluateError, match=r"different numbers of models \(0: 1, 1: 2\)"):
        summary("evaluate probe", kept(said([0, 1], [[0, 1]], "a"), said([0, 1], [[0, 1], [0, 0]], "b")))


def test_predictions_come_back_as_they_were_written(tmp_path) -> None:
    written = [
        said([0, 1, 1], [[0, -1, 0], [1, 1, 1]]),
        replace(said([1], [[1]], "ä "), detail={"modality": "ir"}),
    ]
    write_predictions(tmp_path, written)
    for before, after in zip(written, read_predictions(tmp_path), strict=True):
        assert after.detail == before.detail
        for name in ("items", "labels", "guesses", "hits"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert read_predictions(tmp_path / "elsewhere") == []
    with pytest.raises(ValueError, match=r"have shapes \[\(3,\), \(3,\), \(2, 3\), \(1, 3\)\]"):
        Predictions(DETAIL, written[0].items, written[0].labels, written[0].guesses, written[0].hits[:1])


# On a bank


@pytest.fixture(scope="module")
def split_bank(tmp_path_factory):
    """A toy of six subjects with two folds (each tests other two subjects) beside cross-subject."""
    bank = make_bank(tmp_path_factory.mktemp("pooled") / "bank", Toy(clips=96))
    clips = bank.sql("SELECT clip_id, label, label_name, subject FROM clips ORDER BY clip_id")
    people = clips["subject"].to_pylist()
    splits = [
        pa.table(
            {
                "protocol": [name] * len(people),
                "clip_id": clips["clip_id"],
                "part": ["test" if int(one[1:]) in tested else "train" for one in people],
            }
        )
        for name, tested in (("0", (0, 1)), ("1", (2, 3)))
    ]
    splits.append(bank.sql("SELECT protocol, clip_id, part FROM splits WHERE protocol = 'cross-subject'"))
    bank.register(
        "toy", clips=clips, splits=pa.concat_tables([each.cast(splits[0].schema) for each in splits])
    )
    for protocol in ("0", "1"):
        probe(str(bank.path), protocol=protocol, modalities="skeleton,depth", pool="mean")
    knn(str(bank.path), protocol="0", modalities="skeleton")
    return bank


def test_the_newest_runs_are_pooled(split_bank, capsys) -> None:
    capsys.readouterr()
    assert pooled(str(split_bank.path)) == 0
    out = capsys.readouterr().out
    assert "toy, probe over 0, 1; percent [95 %]" in out
    rows = metrics_of(split_bank, "evaluate pooled")
    assert {(row["name"], row["detail"]["over"]) for row in rows} == {
        (f"pooled/{name}", over)
        for name in ("accuracy", "balanced_accuracy")
        for over in ("mean of 0, 1", "pooled over 0, 1")
    }
    each = split_bank.sql(
        "SELECT value, n, (detail ->> 'modality') AS modality FROM metrics WHERE name = 'probe/accuracy'"
    ).to_pylist()
    for modality in ("skeleton", "depth"):
        parts = [row for row in each if row["modality"] == modality]
        found = {
            row["detail"]["over"]: row
            for row in rows
            if row["name"] == "pooled/accuracy" and row["detail"]["modality"] == modality
        }
        total = sum(row["n"] for row in parts)
        one, mean = found["pooled over 0, 1"], found["mean of 0, 1"]
        assert one["n"] == mean["n"] == total
        assert one["value"] == pytest.approx(sum(row["value"] * row["n"] for row in parts) / total)
        assert mean["value"] == pytest.approx(np.mean([row["value"] for row in parts]))
        assert one["low"] < one["value"] < one["high"]
        assert one["detail"]["of"] == "probe" and len(one["detail"]["runs"]) == 2


def test_named_runs(split_bank) -> None:
    query = "SELECT run_id FROM runs WHERE command = ? ORDER BY started_at"
    first, second = split_bank.sql(query, ["evaluate probe"])["run_id"].to_pylist()[:2]
    (other,) = split_bank.sql(query, ["evaluate knn"])["run_id"].to_pylist()
    folder = str(split_bank.path)
    assert pooled(folder, runs=f"run:{second},run:{first}") == 0
    again = metrics_of(split_bank, "evaluate pooled")[0]["detail"]
    assert again["over"] == "mean of 0, 1" and again["runs"] == [first, second]
    for runs, message in (
        (f"run:{first},run:{first}", "are the same under protocol 0; name one of them"),
        (f"run:{first}", "one protocol is nothing to pool; there are runs under: 0"),
        (f"run:{first},run:{other}", "evaluate knn of toy and evaluate probe of toy; one command"),
        ("run:nothing", "no finished evaluation: run:nothing"),
    ):
        with pytest.raises(EvaluateError, match=message):
            pooled(folder, runs=runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": "0,cross-subject"}, "no run under protocol cross-subject; there are runs under: 0, 1"),
        (
            {"command": "zero-shot"},
            "no run of evaluate zero-shot on toy kept predictions; python -m evaluate",
        ),
        ({"command": "knn"}, "one protocol is nothing to pool"),
        ({"dataset": "tox"}, "no dataset named 'tox'"),
    ],
)
def test_errors_say_what_there_is(split_bank, options, message) -> None:
    with pytest.raises(FrameBankError, match=message):
        pooled(str(split_bank.path), **options)


def test_a_setting_without_a_run_of_each_protocol_is_left_out(split_bank, capsys) -> None:
    probe(str(split_bank.path), protocol="0", modalities="skeleton", shots=2, draws=1)
    pooled(str(split_bank.path))
    assert "left out: skeleton, raw, 2 shots: no run under 1" in capsys.readouterr().err


def test_the_report_shows_what_was_pooled_and_over_what(split_bank) -> None:
    from evaluate.report_tables import results

    pooled(str(split_bank.path))
    text = results(split_bank, None)
    assert "pooled: toy · 0 + 1" in text
    assert "probe, pooled over 0, 1" in text and "probe, mean of 0, 1" in text
