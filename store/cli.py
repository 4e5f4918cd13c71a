"""The command-line edge that every entry point shares: typed signature -> CLI, one-line errors, exit codes.

Import it before anything heavy: it sets ``OMP_WAIT_POLICY=PASSIVE``, which torch's OpenMP reads once when it
is loaded (without it a busy neighbour makes small torch operations up to 30x slower).
"""

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from store.errors import FrameBankError

Command = Callable[..., int | None]
Commands = Mapping[str, "Command | Commands"]
"""Subcommand name -> function, or its own subcommands."""
EXIT_USAGE = 2


def run(
    component: Command | Commands,
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

    errors: tuple[type[Exception], ...] = (FrameBankError, *expected)
    arguments = _plain(sys.argv[1:] if argv is None else argv, component)
    components: Any = component
    parser = _parser(_asked(component, arguments)[0])
    try:
        code = auto_cli(components, args=arguments, prog=prog, parser_class=parser)
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE) from None
    except BrokenPipeError:
        # The reader of our stdout went away (`... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    code = code if isinstance(code, int) else 0
    if argv is None:
        _leave(code)
    raise SystemExit(code)


def _leave(code: int) -> None:
    """End the process in good order, but without tearing down the native libraries.

    A thread pool of theirs that is still alive then calls std::terminate now and then: the work is done and
    committed, and yet the command would end with an abort.
    """
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


def _plain(argv: Sequence[str], component: Command | Commands) -> list[str]:
    """Hyphens in option names -> underscores; a bare switch ``--quiet`` -> ``--quiet true``."""
    function, depth = _asked(component, argv)
    plain = list(argv[:depth])
    flags = _flags(function) if callable(function) else set()
    for place, given in enumerate(argv[len(plain) :], len(plain) + 1):
        name, equals, value = given.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = "--" + name[2:].replace("-", "_")
            plain.append(name + equals + value)
            bare = not equals and (place == len(argv) or argv[place].lower() not in ("true", "false"))
            plain += ["true"] if name[2:] in flags and bare else []
        else:
            plain.append(given)
    return plain


def _asked(component: Command | Commands, argv: Sequence[str]) -> tuple[Any, int]:
    """The function that the first words name (else a table of commands, or None), and how many words."""
    function: Any = component
    depth = 0
    while isinstance(function, Mapping) and depth < len(argv):
        function, depth = function.get(argv[depth]), depth + 1
    return function, depth


def _flags(function: Callable[..., Any]) -> set[str]:
    """Names of a function's parameters that are switches."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    return {each.name for each in parameters if each.annotation in (bool, "bool")}


def _parser(function: Any) -> type:
    """The parser class: hyphens in the help's option names, the docstring's explanation below them."""
    import inspect
    import re

    from jsonargparse import ArgumentParser

    documented = inspect.getdoc(function) or "" if callable(function) else ""
    explanation = documented.partition("\n\n")[2].partition("\nArgs:")[0].strip()

    class Parser(ArgumentParser):
        def format_help(self, *formatter: Any) -> str:
            text = super().format_help(*formatter)
            text = re.sub(r"(?<=[\s\[,]--)[a-z_.]+", lambda name: name[0].replace("_", "-"), text)
            text = re.sub(r"(--[a-z.-]+) \{true,false\}", r"\1", text)
            return f"{text}\n{explanation}\n" if explanation else text

    return Parser


def resolved(**values: Any) -> dict[str, Any]:
    """The call's arguments as a JSON-able dict, for ``runs``: paths become strings, None is kept."""
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()
    }
