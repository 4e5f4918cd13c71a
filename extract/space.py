"""Whether what is about to be extracted fits on the bank's disk: asked before the first clip is read."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from encoders.tokens import TOKEN_FIELDS, TOKENS, with_tokens
from extract.progress import readable_bytes
from extract.task import Task
from extract.wanted import Plan, size_estimate
from store.errors import FrameBankError


class DiskSpaceError(FrameBankError, OSError):
    """More would be written than the disk has left."""


def require_space(bank: Path, todo: Sequence[tuple[Task, Plan]]) -> None:
    """Refuse what the disk cannot hold, as far as sizes are known (a clip of unknown length counts nothing).

    Raises:
        DiskSpaceError: With what is needed, what is free, and which option needs less.
    """
    sizes = [size_estimate(task, wanted) for task, wanted in todo]
    needed, free = sum(size.total for size in sizes), shutil.disk_usage(bank).free
    if needed <= free:
        return
    largest = max(range(len(todo)), key=lambda index: sizes[index].total)
    task, wanted = todo[largest]
    raise DiskSpaceError(
        f"extract: {readable_bytes(needed)} would be written, {readable_bytes(free)} are free in {bank}; "
        f"most of it is {task.label}: {sizes[largest]}; {_smaller(task, wanted)}, or free some, or take "
        "another --bank"
    )


def _smaller(task: Task, wanted: Plan) -> str:
    """The option that shrinks a task."""
    known = task.encoder.fields
    if any(name.split(".")[0] == TOKENS for name in task.fields) and TOKEN_FIELDS["pooled"] in known:
        fields = with_tokens(task.fields, known, "pooled")
        return f"--tokens pooled takes {readable_bytes(size_estimate(task, wanted, fields).total)}"
    if len(task.fields) > 1:
        name = min(task.fields, key=lambda name: size_estimate(task, wanted, [name]).total)
        return f"--fields {name} takes {readable_bytes(size_estimate(task, wanted, [name]).total)}"
    return "fewer --frames or --views take less"
