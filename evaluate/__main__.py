"""`python -m evaluate probe | retrieve | zero-shot | search | report`."""

from store.cli import run

if __name__ == "__main__":
    from evaluate.probe import probe
    from evaluate.retrieve import retrieve

    run({"probe": probe, "retrieve": retrieve}, prog="python -m evaluate")
