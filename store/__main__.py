"""``python -m store info | sql | explain | diff | check | gc | compact | reindex | export | import``."""

from collections.abc import Callable

from store.cli import run
from store.commands.check import check
from store.commands.compact import compact
from store.commands.diff import diff
from store.commands.explain import explain
from store.commands.export import export
from store.commands.gc import gc
from store.commands.import_features import import_features
from store.commands.info import info
from store.commands.reindex import reindex
from store.commands.sql import sql

COMMANDS: dict[str, Callable[..., int | None]] = {
    "info": info,
    "sql": sql,
    "explain": explain,
    "diff": diff,
    "check": check,
    "gc": gc,
    "compact": compact,
    "reindex": reindex,
    "export": export,
    "import": import_features,
}

if __name__ == "__main__":
    run(COMMANDS, prog="python -m store")
