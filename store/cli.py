"""The command-line edge that every entry point shares: typed signature -> CLI, one-line errors, exit codes.

Import it before anything heavy: it sets ``OMP_WAIT_POLICY=PASSIVE``, which torch's OpenMP reads once when it
is loaded (without it a busy neighbour makes small torch operations up to 30x slower).
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from store.errors import FrameBankError

Command = Callable[..., int | None]
EXIT_USAGE = 2


def run(
    component: Command | Mapping[str, Command],
    expected: Sequence[type[Exception]] = (),
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parse the command line against ``component``'s signature, call it and exit with its code.

    Args:
        component: A function, or subcommand name -> function. Type hints and docstrings become the CLI, its
            ``--help`` and the schema of ``--config FILE.yaml``; unknown keys and wrong types are errors.
        expected: Further exception types that are shown as one line (``FrameBankError`` always is).
        argv: Arguments; ``sys.argv[1:]`` if None.
        prog: The name that ``--help`` shows.

    Raises:
        SystemExit: Always: the function's int (None counts as 0), or 2 for expected errors and bad usage.
    """
    from jsonargparse import auto_cli

    try:
        code = auto_cli(dict(component) if isinstance(component, Mapping) else component, args=argv, prog=prog)
    except (FrameBankError, *expected) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    except BrokenPipeError:
        # The reader of our stdout went away (`... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code if isinstance(code, int) else 0)


def resolved(**values: Any) -> dict[str, Any]:
    """The call's arguments as a JSON-able dict, for ``runs``: paths become strings, None is kept."""
    return {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
