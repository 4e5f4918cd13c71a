"""`python -m evaluate probe | retrieve | zero-shot | search | report`."""

from store.cli import Command, run

if __name__ == "__main__":
    from evaluate.probe import probe
    from evaluate.retrieve import retrieve
    from evaluate.zero_shot import zero_shot

    commands: dict[str, Command] = {"probe": probe, "retrieve": retrieve, "zero-shot": zero_shot}
    run(commands, prog="python -m evaluate")
