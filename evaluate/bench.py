"""`python -m evaluate.bench index | search`: evaluations against their limits and rivals, in one run each."""

from store.cli import Command, run  # first: it sets what torch reads when it is loaded


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), run the benchmark, and exit."""
    from evaluate.bench_index import index
    from evaluate.bench_search import search

    commands: dict[str, Command] = {"index": index, "search": search}
    run(commands, argv=argv, prog="python -m evaluate.bench")


if __name__ == "__main__":
    main()
