"""``python -m encoders list | show | verify``: which encoders there are; whether a checkpoint fits one."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see store/cli.py

EXIT_USAGE = 2


def list_encoders(modality: str | None = None, json: bool = False) -> None:
    """Print every encoder: modalities, input, fields, parameters, licence, and where its weights come from.

    Args:
        modality: Only those that take it (rgb, ir, depth, rgb+depth, skeleton, inertial, audio, text).
        json: As a JSON list, with pooled variants of token fields and the input of every modality.
    """
    from encoders import ENCODERS, encoders_for
    from encoders.describe import describe
    from encoders.errors import EncoderError
    from encoders.listing import as_json, row, table

    names = list(ENCODERS) if modality is None else encoders_for(modality)
    if not names:
        raise EncoderError(f"encoders: none takes {modality!r}; omit --modality to see what there is")
    found = [describe(name) for name in names]
    print(as_json(found) if json else table([row(one) for one in found]))


def show(name: str) -> None:
    """Print all that is known of one encoder without its weights.

    Args:
        name: As `list` shows it.
    """
    from encoders.describe import describe
    from encoders.listing import detail

    print(detail(describe(name)))


def verify(
    name: str,
    weights: str | None = None,
    modality: str | None = None,
    preset: str | None = None,
    allow_partial: str | None = None,
    device: str = "cpu",
) -> None:
    """Load a checkpoint strictly, run it once on generated media, and report both.

    Args:
        name: As `list` shows it.
        weights: Checkpoint file, model folder or hub id; the installed package's or official hub id's if
            omitted.
        modality: What to try it with, and whose encoder to take out of a file that holds several.
        preset: Preprocessing, where the encoder has a choice: official, cmvra, small.
        allow_partial: Comma-separated keys, or prefixes ending in ".", that need not fit.
        device: cpu, cuda, cuda:1.
    """
    from encoders.verify import verify as report

    options: dict[str, Any] = {"preset": preset} if preset else {}
    if allow_partial:
        options["allow_partial"] = tuple(key.strip() for key in allow_partial.split(","))
    for line in report(name, weights, modality, device, options):
        print(line, flush=True)
    print("verified")


COMMANDS: dict[str, Callable[..., None]] = {"list": list_encoders, "show": show, "verify": verify}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), do what it says, and exit: 0, or 2 with the error."""
    from jsonargparse import auto_cli

    from encoders.errors import EncoderError

    arguments = [_plain(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        auto_cli(dict(COMMANDS), args=arguments, prog="python -m encoders", parser_class=_parser())
    except BrokenPipeError:  # the reader of our stdout went away (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (EncoderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None


def _plain(word: str) -> str:
    """``--allow-partial`` -> ``--allow_partial``; the bare switch ``--json`` -> ``--json=true``."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    return "--json=true" if word == "--json" else f"--{name[2:].replace('-', '_')}{equals}{value}"


def _parser() -> type:
    """The parser class: hyphens in the help's option names."""
    import re

    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def format_help(self, *formatter: Any) -> str:
            text = super().format_help(*formatter)
            text = re.sub(r"(?<=[\s\[,]--)[a-z_.]+", lambda name: name[0].replace("_", "-"), text)
            return text.replace("--json {true,false}", "--json")

    return Parser


if __name__ == "__main__":
    main()
