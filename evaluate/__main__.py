"""`python -m evaluate`: probe, fuse, knn, zero-shot, retrieve, search, pooled, geometry, report and more."""

from store.cli import Command, run  # first: it sets what torch reads when it is loaded


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), run the command, and exit."""
    from encoders.errors import EncoderError
    from evaluate.classify import classify
    from evaluate.fuse import fuse
    from evaluate.gain import gain
    from evaluate.geometry import geometry
    from evaluate.import_cmvra import import_cmvra
    from evaluate.index_commands import build, extend, info
    from evaluate.knn import knn
    from evaluate.pooled import pooled
    from evaluate.probe import probe
    from evaluate.report import report
    from evaluate.reproduce import reproduce
    from evaluate.retrieve import retrieve
    from evaluate.search import search
    from evaluate.zero_shot import zero_shot

    commands: dict[str, Command | dict[str, Command]] = {
        "probe": probe,
        "fuse": fuse,
        "knn": knn,
        "retrieve": retrieve,
        "zero-shot": zero_shot,
        "import-cmvra": import_cmvra,
        "classify": classify,
        "pooled": pooled,
        "gain": gain,
        "geometry": geometry,
        "reproduce": reproduce,
        "search": search,
        "index": {"build": build, "info": info, "extend": extend},
        "report": report,
    }
    run(commands, expected=(EncoderError,), argv=argv, prog="python -m evaluate")


if __name__ == "__main__":
    main()
