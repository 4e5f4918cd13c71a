"""``python -m store reindex``: the catalog's features rebuilt from the segments alone."""

import sys


def reindex(bank: str = "bank") -> int:
    """Rebuild features, feature sets and segments from the manifests, and runs from their records.

    Args:
        bank: The bank's folder; its catalog may be missing or broken.

    Returns:
        0, or 1 if some segments or records could not be read.
    """
    from store.reindex import reindex as rebuild

    _, done = rebuild(bank)
    if done.set_aside is not None:
        print(f"the catalog could not be opened; it is kept as {done.set_aside}", file=sys.stderr)
    for line in done.unreadable:
        print(line, file=sys.stderr)
    print(f"{done.segments} segments of {done.sets} feature sets and {done.runs} runs are in the catalog")
    return 1 if done.unreadable else 0
