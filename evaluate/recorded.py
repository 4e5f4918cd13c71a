"""Steps that are not taken twice: a finished run of the same configuration stands for running it again."""

import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from store.runs import json_ready

if TYPE_CHECKING:
    from store.bank import Bank

# Runs of a command, finished or not, the newest first, that no feature set of theirs has outgrown since.
RUNS = """
    SELECT r.run_id, r.config::VARCHAR AS config FROM runs r
    WHERE r.command = ? AND (r.status = 'done') = ? AND NOT EXISTS (
        SELECT 1 FROM run_sets u JOIN feature_sets s
            ON s.dataset = u.dataset AND s.modality = u.modality AND s.name = u.feature_set
        JOIN segments g USING (set_id)
        WHERE u.run_id = r.run_id AND g.committed_at > r.started_at)
    ORDER BY r.started_at DESC, r.run_id DESC
"""


def step(bank: "Bank", command: str, function: Callable[..., int | None], **arguments: Any) -> str:
    """The id of a finished run of a command with these arguments: the newest recorded one, or a new one.

    Args:
        bank: The bank.
        command: Its name in the catalog: ``evaluate probe``.
        function: What runs it; its table goes to stderr.
        arguments: The function's; those left out have their defaults.
    """
    known = recorded(bank, command, defaults(function) | arguments)
    if known is not None:
        print(f"{command}: recorded as run:{known}", file=sys.stderr)
        return known
    with contextlib.redirect_stdout(sys.stderr):
        function(bank=str(bank.path), **arguments)
    made = recorded(bank, command, defaults(function) | arguments)
    assert made is not None, f"{command} left no record of {arguments}"
    return made


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The default arguments of a command, without the bank."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.name != "bank"}


def recorded(bank: "Bank", command: str, wanted: Mapping[str, Any]) -> str | None:
    """The newest finished run whose configuration has all these values, and whose features are up to date."""
    return next(_runs(bank, command, wanted, done=True), None)


def interrupted(bank: "Bank", command: str, wanted: Mapping[str, Any], state: str) -> str | None:
    """The newest such run that did not finish, and left a file ``state`` to go on from."""
    unfinished = _runs(bank, command, wanted, done=False)
    return next((one for one in unfinished if (bank.path / "runs" / one / state).exists()), None)


def _runs(bank: "Bank", command: str, wanted: Mapping[str, Any], done: bool) -> Iterator[str]:
    asked = json_ready(wanted)
    for row in bank.sql(RUNS, [command, done]).to_pylist():
        config = json.loads(row["config"])
        if all(name in config and config[name] == value for name, value in asked.items()):
            yield str(row["run_id"])


def metrics(bank: "Bank", run_id: str) -> list[dict[str, Any]]:
    """name, value, n, low, high and detail of a run's metrics."""
    query = "SELECT name, value, n, low, high, detail::VARCHAR AS detail FROM metrics WHERE run_id = ?"
    return [
        row | {"detail": json.loads(row["detail"] or "{}")} for row in bank.sql(query, [run_id]).to_pylist()
    ]
