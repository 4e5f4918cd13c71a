"""`evaluate.bench`: the generated collection is what it says, and the tables show true numbers."""

import csv
import re

import numpy as np
import pytest

from evaluate.bench_index import CLUSTERS, GAP, SPREAD, index, made, written


def test_the_collection_is_the_same_every_time(tmp_path) -> None:
    small, large = next(made(500, 64)), np.concatenate([*made(20_000, 64)])
    np.testing.assert_array_equal(written(tmp_path / "vectors.npy", 20_000, 64), large)
    np.testing.assert_allclose(np.linalg.norm(large, axis=1), 1, atol=1e-5)
    assert np.abs(small - large[:500]).max() > 0.1  # a block is drawn as a whole
    np.testing.assert_array_equal(next(made(500, 64)), small)


def test_its_variance_falls_and_queries_lie_aside() -> None:
    vectors, queries = next(made(8000, 128)), next(made(8000, 128, seed=1, gap=GAP))
    variances = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    assert variances[:8].sum() > 0.4 * variances.sum()
    assert variances[64] < 0.02 * variances[0]  # beyond the 64 dimensions there is only noise
    assert np.linalg.norm(queries.mean(0) - vectors.mean(0)) > 0.3
    assert CLUSTERS == 1000
    assert SPREAD < 1


def rows(text: str) -> dict[str, list[str]]:
    found = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {cells[0]: cells for cells in found if len(cells) > 5}


def test_every_index_is_measured(capsys) -> None:
    index(2000, 16, 8, rounds=1)
    table = rows(capsys.readouterr().out)
    del table["--------"]
    assert list(table) == ["index", "flat", "exact", "sq8", "ivf-flat", "ivf-pq", "hnsw"]
    assert table["flat"][1] == table["exact"][1] == "1.0000"
    assert all(float(cells[1]) > 0.8 for name, cells in table.items() if name != "index")


@pytest.mark.slow
def test_real_sentences_and_a_typed_query(tmp_path, capsys) -> None:
    from evaluate.bench_search import search

    path = tmp_path / "sentences.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "sentence"])
        writer.writerows([[number, f"a man lifts {number} boxes"] for number in range(400)])
    index(1000, 16, 8, only="exact", rounds=1, captions=path)
    assert "400 sentences of sentences.csv by MiniLM" in (out := capsys.readouterr().out)
    assert "0.0%" in out
    search(300, rounds=1)
    assert "300 clips x 384 by exact, 10 typed queries" in capsys.readouterr().out
