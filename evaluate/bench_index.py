"""`python -m evaluate.bench index`: every index on one collection; time, size, speed and what it finds."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from evaluate.index import Index

CLUSTERS = 1000
RANK = 64  # dimensions in which the vectors vary, the i-th by 1 / sqrt(i)
SPREAD = 0.5  # of a cluster, of that of the centres
NOISE = 0.3  # length of what is in no low rank; the centres' is about 2
GAP = 1.0  # by how much the queries' modality is beside the vectors'
K = 10
BLOCK = 16_384
SINGLE = 50  # queries asked one by one


def index(
    vectors: int = 50_000,
    dim: int = 512,
    queries: int = 1000,
    only: str | None = None,
    options: dict[str, dict[str, int]] | None = None,
    rounds: int = 3,
    captions: Path | None = None,
    directory: Path | None = None,
) -> int:
    """Build and search every index over made-up embeddings, against exact search in the same run.

    The vectors: 1,000 clusters in 64 dimensions of falling weight, with noise; queries are drawn alike, and
    moved aside as another modality's are. Always the same for one size.

    Args:
        vectors: How many; 1000000 is the full measurement (2 GB on disk, half an hour).
        dim: Of the vectors.
        queries: Of the large batch.
        only: Indexes to measure, with commas; None: all. `flat` always is.
        options: Index -> its options, as for `python -m evaluate index build`.
        rounds: Repetitions; medians are printed.
        captions: A CSV file with a column `sentence` (MSR-VTT's): its sentences, encoded by MiniLM and asked
            among themselves, are a second collection for `exact`.
        directory: Where the vectors are written; a temporary folder if None.
    """
    from evaluate import INDEXES
    from evaluate.index import make_index
    from evaluate.records import print_table

    names = ["flat", *(each for each in (only.split(",") if only else INDEXES) if each != "flat")]
    with tempfile.TemporaryDirectory(prefix="framebank-bench-", dir=directory) as folder:
        gallery = written(Path(folder) / "vectors.npy", vectors, dim)
        asked = next(made(queries, dim, seed=1, gap=GAP))
        rows: list[dict[str, Any]] = []
        for name in names:
            began = time.perf_counter()
            searched = make_index(name, gallery, options=(options or {}).get(name))
            seconds = time.perf_counter() - began
            if name == "flat":
                flat, truth = searched, _truth(gallery, asked)
            target = Path(folder) / name
            target.mkdir()
            searched.save(target)
            size = sum(path.stat().st_size for path in target.iterdir()) / vectors
            rows.append(_row(name, searched, flat, asked, truth, rounds) | {"build s": f"{seconds:.1f}"})
            rows[-1] |= {"bytes": f"{size:.0f}", "predicted": f"{searched.predicted_bytes(dim, vectors):.0f}"}
    threads = _threads()
    print(f"{vectors:,} x {dim}, {queries:,} queries, {K} neighbours, {threads} threads\n")
    print_table(rows)
    print(
        "\nrecall, same place: of the ten that float64 finds, whether at all, and as the same ones in order"
    )
    print("bytes: a vector's share of the structure, beside its float32 values, which are memory-mapped")
    if captions is not None:
        _captions(captions, rounds)
    return 0


def made(count: int, dim: int, seed: int = 0, gap: float = 0.0) -> "Iterator[np.ndarray]":
    """Unit vectors, in blocks (b, dim) float32; the same clusters for every seed."""
    import numpy as np

    from evaluate.index import unit

    world = np.random.default_rng(20_26)
    weights = 1 / np.sqrt(np.arange(1, RANK + 1))
    centres = world.normal(size=(CLUSTERS, RANK)) * weights
    basis = np.linalg.qr(world.normal(size=(dim, max(1, min(RANK, dim)))))[0].T
    aside = gap * unit(world.normal(size=(1, dim)))
    for at in range(0, count, BLOCK):
        rng = np.random.default_rng([seed, at])
        size = min(BLOCK, count - at)
        inner = centres[rng.integers(0, CLUSTERS, size)] + SPREAD * weights * rng.normal(size=(size, RANK))
        noise = rng.standard_normal((size, dim), np.float32) * np.float32(NOISE / dim**0.5)
        yield unit(inner[:, : len(basis)].astype(np.float32) @ basis.astype(np.float32) + noise + aside)


def written(path: Path, count: int, dim: int) -> "np.ndarray":
    """The same in a file, memory-mapped."""
    import numpy as np

    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, dim))
    at = 0
    for block in made(count, dim):
        vectors[at : at + len(block)] = block
        at += len(block)
    vectors.flush()
    return vectors


def _row(
    name: str, searched: "Index", flat: "Index", asked: "np.ndarray", truth: "np.ndarray", rounds: int
) -> dict[str, Any]:
    """Speed beside flat's, alternately, and the share of the true neighbours that are found."""
    import numpy as np

    searched.search(asked[:1], K)  # oneDNN prepares each shape once
    searched.search(asked, K)
    single, together, other = [], [], []
    for _ in range(rounds):
        single.append(_seconds(lambda: [searched.search(one[None], K) for one in asked[:SINGLE]]))
        other.append(_seconds(lambda: flat.search(asked, K)))
        together.append(_seconds(lambda: searched.search(asked, K)))
    found = searched.search(asked, K)[1]
    recall = np.mean([np.isin(one, true).mean() for one, true in zip(found, truth, strict=True)])
    batch = statistics.median(together)
    return {
        "index": name,
        "recall@10": f"{recall:.4f}",
        "same place": f"{(found == truth).mean():.2%}",
        "1 at a time": f"{len(asked[:SINGLE]) / statistics.median(single):,.0f}/s",
        f"{len(asked):,} at a time": f"{len(asked) / batch:,.0f}/s",
        "times flat": f"{statistics.median(other) / batch:.2f}",
        "fallbacks": f"{fallbacks / len(asked):.1%}" if (fallbacks := _fallbacks(searched)) >= 0 else "",
    }


def _truth(gallery: "np.ndarray", asked: "np.ndarray") -> "np.ndarray":
    """(Q, K) rows in the order of their float64 scores, without any index: float32, then float64 for ties."""
    import numpy as np

    from evaluate.exact import search_float

    longest = max(float(np.linalg.norm(gallery[at : at + BLOCK], axis=1).max())
                  for at in range(0, len(gallery), BLOCK))  # fmt: skip
    return search_float(gallery, asked, K, longest)[1]


def _fallbacks(searched: "Index") -> int:
    return int(getattr(searched, "fallbacks", -1))


def _captions(path: Path, rounds: int) -> None:
    """Exact search among real sentences."""
    import csv

    from encoders.minilm import MiniLM
    from evaluate.index import make_index, unit
    from evaluate.records import print_table

    with path.open(encoding="utf-8") as file:
        sentences = sorted({row["sentence"] for row in csv.DictReader(file)})
    vectors = unit(MiniLM().encode_text(sentences).numpy())
    flat, exact = make_index("flat", vectors), make_index("exact", vectors)
    truth = _truth(vectors, vectors)
    print(f"\n{len(sentences):,} sentences of {path.name} by MiniLM, each asked among all\n")
    print_table(
        [_row(name, one, flat, vectors, truth, rounds) for name, one in (("flat", flat), ("exact", exact))]
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _threads() -> int:
    from evaluate.shortlist import library

    return int(library().omp_get_max_threads())
