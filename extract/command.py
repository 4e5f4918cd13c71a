"""What ``python -m extract`` does with its arguments: register the dataset, then each modality in turn."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from encoders.errors import WeightsError
from extract.datasets import Dataset, DatasetConfig, DatasetError, dataset_names, load_config, load_dataset
from extract.encode import resolve_device
from extract.interrupt import Interruption
from extract.memory import keep_freed_memory
from extract.pipeline import extract_clips
from extract.progress import readable_bytes
from extract.register import register
from extract.resolve import Choices, clip_task, modalities, text_task
from extract.space import require_space
from extract.task import Limits, Outcome, Task
from extract.texts import TextTask, extract_texts, plan_texts
from extract.wanted import Plan, plan, size_estimate
from extract.workers import DecodePool, default_workers
from store.bank import Bank, NotABankError
from store.tables import TEXT, TEXTS

EXIT_DONE, EXIT_SOME_FAILED = 0, 1
_SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Request:
    """The command line, as :func:`extract.__main__.extract` documents it."""

    dataset: str | None
    modality: str | None
    root: str | None
    bank: str
    choices: Choices
    workers: int | None = None
    batch_frames: int | None = None
    timeout_seconds: float = 60.0
    max_failures: float = 0.2
    register_only: bool = False


def execute(request: Request, pool: DecodePool | None = None) -> int:
    """Carry out a request; returns the exit status.

    Args:
        request: What.
        pool: Decode processes to use (several requests may share them); own ones if None.

    Raises:
        FrameBankError, EncoderError: For what is wrong with the request, before anything is extracted.
    """
    request = _checked(request)
    adapter, config = find_dataset(request)
    bank = Bank.open(request.bank, create=True)
    register_dataset(bank, adapter, config, request)
    if request.register_only:
        return EXIT_DONE
    keep_freed_memory()
    with ExitStack() as stack:
        stopper = stack.enter_context(Interruption())
        if pool is None:
            workers = request.workers or default_workers()
            pool = stack.enter_context(DecodePool(workers, request.timeout_seconds))
        return _Command(bank, config, request, pool, stopper).run()


class _Command:
    """One run over the modalities of a dataset, with one pool of decode processes for all of them."""

    def __init__(
        self, bank: Bank, config: DatasetConfig, request: Request, pool: DecodePool, stopper: Interruption
    ):
        self.bank, self.request, self.pool, self.stopper = bank, request, pool, stopper
        recipe = request.choices.modalities
        self.config = replace(config, modalities=recipe) if recipe else config
        self.limits = Limits(request.max_failures, request.batch_frames)
        self.failed = 0

    def run(self) -> int:
        """All modalities in turn; returns the exit status."""
        names = modalities(self.bank, self.config, self.request.modality, self.request.choices)
        # Every mistake in the request, and a disk too small for it, shows before the first hour of work.
        tasks = self._tasks(names)
        todo = [one for one in map(self._planned, tasks) if one is not None]
        require_space(self.bank.path, [(task, rows) for task, rows in todo if isinstance(task, Task)])
        while todo:
            task, wanted = todo.pop(0)
            self._text(task, wanted) if isinstance(task, TextTask) else self._clips(task, wanted)
            if self.stopper.number is not None:
                return self._interrupted()
        return EXIT_SOME_FAILED if self.failed else EXIT_DONE

    def _tasks(self, modalities: Sequence[str]) -> list[Task | TextTask]:
        """One for each modality.

        Raises:
            WeightsError: Naming all the files that are missing, not the first one only.
        """
        tasks, missing = [], []
        for name in modalities:
            try:
                tasks.append(self._task(name))
            except WeightsError as error:
                missing.append(f"{name}: {error}")
        if missing:
            raise WeightsError("\nerror: ".join(missing))  # a line each
        return tasks

    def _task(self, modality: str) -> Task | TextTask:
        if modality == TEXT:
            return text_task(self.bank, self.config, self.request.choices)
        return clip_task(self.bank, self.config, modality, self.request.choices)

    def _planned(self, task: Task | TextTask) -> tuple[Any, Any] | None:
        """The task with its missing rows, announced with what they will take; None if nothing is missing."""
        if isinstance(task, TextTask):
            texts = plan_texts(self.bank, task)
            if not texts:
                print(f"nothing is missing: all texts of the bank have {task.spec.name} ({task.field.name})")
                return None
            size = readable_bytes(2 * task.field.tokens * task.field.dim * len(texts))
            _say(f"texts {task.spec.name}: {len(texts)} texts to do, about {size}; {_how(task)}")
            return task, texts
        rows = plan(self.bank, task)
        if not rows:
            print(_nothing_to_do(self.bank, task))
            return None
        _say(f"{task.label}: {len(rows)} {_rows(task)} to do, {size_estimate(task, rows)}; {_how(task)}")
        return task, rows

    def _clips(self, task: Task, wanted: Plan) -> None:
        with self.bank.record_run("extract", self._record(task, task.dataset, task.modality)) as run:
            outcome = extract_clips(self.bank, task, wanted, self.pool, run, self.limits, self.stopper.reason)
        self._report(task.label, _rows(task), outcome, task.dataset, task.modality)

    def _text(self, task: TextTask, wanted: list[tuple[str, str]]) -> None:
        with self.bank.record_run("extract", self._record(task, TEXTS, TEXT)) as run:
            outcome = extract_texts(self.bank, task, wanted, run, self.limits, self.stopper.reason)
        self._report(f"texts {task.spec.name}", "texts", outcome, TEXTS, TEXT)

    def _record(self, task: Task | TextTask, dataset: str, modality: str) -> dict[str, Any]:
        """The resolved configuration, for ``runs``."""
        asked = asdict(self.request)
        recipe = {name: one.to_json() for name, one in self.request.choices.modalities.items()}
        return {
            **asked.pop("choices"),
            **asked,
            "modalities": recipe or None,
            "dataset": dataset,
            "modality": modality,
            "feature_set": task.spec.name,
            "encoder": task.encoder.name,
            "precision": task.spec.precision,
            "sampling": task.sampling.key() if isinstance(task, Task) else None,
        }

    def _report(self, label: str, rows: str, outcome: Outcome, dataset: str, modality: str) -> None:
        self.failed += outcome.failed
        parts = [f"{outcome.added} {rows} added"]
        parts += [f"{outcome.failed} failed"] if outcome.failed else []
        left = outcome.planned - outcome.added - outcome.failed - outcome.skipped
        parts += [f"{left} left"] if left else []
        print(f"{label}: {', '.join(parts)} in {timedelta(seconds=round(outcome.seconds))}")
        for note, times in outcome.notes.items():
            _say(f"  note: {times} x {note}")
        if outcome.failed:
            self._show_failures(outcome, dataset, modality)
        if outcome.stopped and self.stopper.number is None:
            self.failed = self.failed or 1
            _say(f"stopped: {outcome.stopped}")

    def _show_failures(self, outcome: Outcome, dataset: str, modality: str) -> None:
        """The first failures and the query for all of them."""
        for row in self.bank.failures(dataset, modality).slice(0, _SHOWN_FAILURES).to_pylist():
            _say(f"  failed: {row['clip_id']} ({row['stage']}, attempt {row['attempts']}): {row['error']}")
        _say(f"  most common: {outcome.commonest_error}")
        query = f"SELECT * FROM failures WHERE dataset = '{dataset}' AND modality = '{modality}'"
        _say(f'  all of them: python -m store sql --bank {self.bank.path} "{query}"; run again to retry')

    def _interrupted(self) -> int:
        _say(f"{self.stopper.reason()}: what was done is committed; run the same command again to go on")
        return self.stopper.exit_code


def _checked(request: Request) -> Request:
    """The request with its device resolved.

    Raises:
        DatasetError: For numbers and names that make no sense.
    """
    if request.dataset is None:
        raise DatasetError(f"extract: which dataset? --dataset with one of: {', '.join(dataset_names())}")
    for name, value, low in (
        ("views", request.choices.views, 1),
        ("workers", request.workers, 1),
        ("batch-frames", request.batch_frames, 1),
        ("max-failures", request.max_failures, 0),
    ):
        if value is not None and value < low:
            raise DatasetError(f"extract: --{name} {value}; at least {low} is accepted")
    if request.timeout_seconds <= 0:
        raise DatasetError(f"extract: --timeout-seconds {request.timeout_seconds}; more than 0 is accepted")
    device = resolve_device(request.choices.device)
    return replace(request, choices=replace(request.choices, device=device))


def find_dataset(request: Request) -> tuple[Dataset, DatasetConfig]:
    """The adapter and the configuration; a root that isn't given is the YAML's, then the bank's.

    Raises:
        UnknownNameError, DatasetError: For an unknown dataset, or one whose root nobody knows.
    """
    assert request.dataset is not None
    config = load_config(request.dataset, request.root)
    root = config.root or _known_root(request.bank, config.name)
    return load_dataset(request.dataset, request.root if config.root else root)


def _known_root(bank: str, dataset: str) -> str | None:
    try:
        rows = Bank.open(bank).datasets().to_pylist()
    except NotABankError:
        return None
    return next((row["root"] for row in rows if row["name"] == dataset), None)


def register_dataset(bank: Bank, adapter: Dataset, config: DatasetConfig, request: Request) -> None:
    """Bring the bank's catalog up to date with what the adapter lists, and say what is new."""
    hashed = None
    if request.register_only:
        hashed = []
    elif request.modality is not None:
        hashed = [name.strip() for name in request.modality.replace("+", ",").split(",")]
    counts = register(bank, adapter, config, hashed, _looking_at(config.name))
    kinds = ("new", "changed", "new_texts")
    news = [f"{counts[name]} {name.replace('_', ' ')}" for name in kinds if counts.get(name)]
    _say(f"dataset {config.name!r}: {counts['clips']} clips{': ' if news else ''}{', '.join(news)}")
    for note in getattr(adapter, "notes", list)():
        _say(f"  note: {note}")
    if request.register_only:
        print(f"registered: {counts['clips']} clips of {config.name!r} in {bank.path}")


def _looking_at(dataset: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and total > 1000:
            end = "\n" if done == total else ""
            print(f"\r\x1b[Kdataset {dataset!r}: looked at {done}/{total} files", end=end, file=sys.stderr)

    return show


def _nothing_to_do(bank: Bank, task: Task) -> str:
    """Why there is nothing to do: everything is there, or no clip fits the condition."""
    clips = bank.sql(
        "SELECT count(*) AS n FROM (SELECT * FROM clips WHERE dataset = $dataset) JOIN sources USING"
        f" (dataset, clip_id) WHERE modality = $modality AND ({task.where or 'true'})",
        {"dataset": task.dataset, "modality": task.modality},
    )["n"][0].as_py()
    if not clips:
        lacking = "has files of both" if task.where is None else f"fits --where {task.where!r}"
        return f"nothing to do: no clip of {task.dataset}/{task.modality} {lacking}"
    views = f"{task.views} views of " if task.views > 1 else ""
    all_of_them = f"all {clips} clips of {task.dataset}/{task.modality} have {views}{task.spec.name}"
    return f"nothing is missing: {all_of_them} ({', '.join(task.fields)})"


def _rows(task: Task) -> str:
    return "clips" if task.views == 1 else "views"


def _how(task: Task | TextTask) -> str:
    return f"{task.spec.precision} on {task.device}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
