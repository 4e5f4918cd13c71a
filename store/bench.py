"""`python -m store.bench`: the store against its physical limits and its rivals, in one run, as ratios."""

import tempfile
from pathlib import Path

from store.cli import run


def bench(
    rounds: int = 21,
    clips: int = 16384,
    token_clips: int = 64,
    catalog_clips: int = 1_000_000,
    directory: Path | None = None,
) -> int:
    """Measure reading, writing and the catalog; exit 1 if a goal is missed.

    Args:
        rounds: Alternated rounds per contest; medians are printed.
        clips: Clips of 8-24 frames x 1 token x 768 to read from.
        token_clips: Clips of 8-24 frames x 197 tokens x 768 to read from (about 5 MB each).
        catalog_clips: Clips in the catalog; 0 leaves the catalog out.
        directory: Where to write; the disk of this folder is measured. A temporary folder if None.
    """
    with tempfile.TemporaryDirectory(prefix="framebank-bench-", dir=directory) as folder:
        reached = [*_physical(Path(folder), rounds, clips, token_clips)]
        if catalog_clips:
            from store.bench_catalog import catalog

            reached.append(catalog(Path(folder) / "bank", catalog_clips))
    print(f"\n{sum(reached)} of {len(reached)} goals reached")
    return 0 if all(reached) else 1


def _physical(folder: Path, rounds: int, clips: int, token_clips: int) -> list[bool]:
    from store.bench_cold import cold_batches
    from store.bench_segments import PREADV, TAKES, build, epochs, rivals, sequential, writing

    (folder / "cls").mkdir()
    (folder / "tokens").mkdir()
    corpus = build(folder / "cls", clips, 1, 768)
    tokens = build(folder / "tokens", token_clips, 197, 768)
    return [
        epochs(corpus, 256, rounds, TAKES, 1 / 1.5),
        epochs(tokens, 16, rounds, PREADV, 0.8),
        sequential(corpus, rounds),
        sequential(tokens, rounds),
        writing(folder, 768, rounds),
        cold_batches(corpus, 256, rounds),
        rivals(corpus, 256, rounds),
        rivals(tokens, 16, rounds),
    ]


if __name__ == "__main__":
    run(bench)
