"""Two ways to come by features, probed and compared clip by clip."""

import numpy as np
import pytest
from evaluate_bank import aligned_bank, trained

from evaluate.gain import _paired, gain
from evaluate.leakage import LeakageError
from evaluate.predictions import Predictions
from evaluate.probe import probe


@pytest.fixture(scope="module")
def bank_and_checkpoint(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def metrics(bank, name) -> list[dict]:
    query = """
        SELECT value, low, high, n, detail ->> 'of' AS kind, detail ->> 'source' AS source FROM metrics
        WHERE name = ? AND run_id = (SELECT max(run_id) FROM metrics WHERE name = ?) ORDER BY kind, source
    """
    return bank.sql(query, [name, name]).to_pylist()


def test_features_are_equal_and_embeddings_are_those_of_the_probe(bank_and_checkpoint, capsys):
    bank, checkpoint = bank_and_checkpoint
    other = trained(bank, seed=5, modalities="skeleton,depth")
    assert gain(f"{checkpoint},{other}", checkpoint, "skeleton", str(bank.path)) == 0
    out = capsys.readouterr().out
    assert "cross-subject test, skeleton; 48 clips" in out and "difference" in out
    embedded, stored = metrics(bank, "gain/gain")
    assert (stored["kind"], stored["value"], stored["low"], stored["high"]) == ("features", 0, 0, 0)
    assert embedded["kind"] == "embeddings" and embedded["low"] <= embedded["value"] <= embedded["high"]
    shares = {(row["kind"], row["source"]): row["value"] for row in metrics(bank, "gain/accuracy")}
    probe(str(bank.path), modalities="skeleton", checkpoint=checkpoint)
    (alone,) = bank.sql(
        "SELECT value FROM metrics WHERE name = 'probe/accuracy' ORDER BY run_id DESC LIMIT 1"
    ).to_pylist()
    assert shares["embeddings", checkpoint] == pytest.approx(alone["value"])
    both = shares["embeddings", f"{checkpoint},{other}"]
    assert embedded["value"] == pytest.approx(both - alone["value"])


def test_only_clips_that_both_have_are_compared():
    def said(items, hits):
        labels = np.zeros(len(items), int)
        rows = np.array([hits], float)
        return Predictions({}, np.array(items, object), labels, rows.astype(int), rows)

    first, second = _paired([said(["c", "a", "b"], [0.3, 0.1, 0.2]), said(["b", "d", "c"], [1.2, 1.4, 1.3])])
    assert (first.tolist(), second.tolist()) == ([[0.2, 0.3]], [[1.2, 1.3]])


def test_checkpoints_that_saw_the_part_are_refused(bank_and_checkpoint):
    bank, checkpoint = bank_and_checkpoint
    with pytest.raises(LeakageError):
        gain(checkpoint, checkpoint, "skeleton", str(bank.path), part="train")
