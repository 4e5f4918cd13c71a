"""`python -m evaluate.bench search`: how long a typed query takes, its text encoder included."""

import time

GOAL_SECONDS = 0.05  # at the median
QUERIES = (
    "a person waving", "somebody drinks out of a cup", "a woman reading a book", "two people shake hands",
    "a dog runs over a field", "cooking pasta in a small kitchen", "a car drives through the rain at night",
    "a man plays the guitar and sings", "children kick a ball", "a hand turns a page",
)  # fmt: skip


def search(clips: int = 100_000, kind: str = "exact", rounds: int = 20) -> int:
    """Ask ten typed sentences again and again, in a warm process; exit 1 if the median misses 50 ms.

    The clips' vectors are made up (MiniLM has 384 dimensions); the sentences are encoded by the real MiniLM
    each time, and the ten best clips looked up.

    Args:
        clips: How many are searched.
        kind: Name in evaluate.INDEXES.
        rounds: How often each sentence is asked.
    """
    import numpy as np

    from encoders.minilm import MiniLM
    from evaluate.bench_index import K, made
    from evaluate.index import make_index, unit

    encoder = MiniLM()
    dim = encoder.fields["embedding"].dim
    index = make_index(kind, np.concatenate([*made(clips, dim)]))
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        for sentence in QUERIES:
            began = time.perf_counter()
            query = unit(encoder.encode_text([sentence]).numpy())
            encoded = time.perf_counter()
            index.search(query, K)
            times.append((encoded - began, time.perf_counter() - encoded))
    parts = np.array(times[len(QUERIES) :])  # the first round warms up
    print(f"{clips:,} clips x {dim} by {kind}, {len(parts)} typed queries\n")
    for name, seconds in (("encoding", parts[:, 0]), ("search", parts[:, 1]), ("together", parts.sum(1))):
        at = " ".join(f"p{p} {np.percentile(seconds, p) * 1e3:7.2f} ms " for p in (50, 95, 99))
        print(f"{name:<10} {at}")
    median = float(np.median(parts.sum(1)))
    print(f"\nmedian / {GOAL_SECONDS * 1e3:.0f} ms: {median / GOAL_SECONDS:.2f}")
    return 0 if median < GOAL_SECONDS else 1
