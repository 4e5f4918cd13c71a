"""`python -m evaluate.bench probe | index | search`: evaluations, their limits and rivals, measured."""

import os
import sys

from store.cli import Command, run  # first: it sets what torch reads when it is loaded


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), run the benchmark, and exit."""
    if argv is None and "OPENBLAS_CORETYPE" in os.environ:
        # It holds numpy, and with it the rivals, to another processor's kernels; read once, by the library.
        del os.environ["OPENBLAS_CORETYPE"]
        os.execv(sys.executable, sys.orig_argv)
    from evaluate.bench_index import index
    from evaluate.bench_probe import probe
    from evaluate.bench_search import search

    commands: dict[str, Command] = {"probe": probe, "index": index, "search": search}
    run(commands, argv=argv, prog="python -m evaluate.bench")


if __name__ == "__main__":
    main()
