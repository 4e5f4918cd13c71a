"""A whole corpus on disk: which clips, what is missing, in how many processes, and what it was made with."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from extract.datasets.ntu_names import NTUName
from extract.datasets.synthetic.actions import ACTIONS
from extract.datasets.synthetic.captions import captions
from extract.datasets.synthetic.files import LAYOUT, remove_partial, replacing, write_clip
from extract.datasets.synthetic.films import film
from extract.datasets.synthetic.names import CorpusError, clip_names

REVISION = 1  # raise when the same arguments no longer give the same files
RECIPE = "corpus.json"
CAPTIONS = "captions.jsonl"
CLASSES = "classes.txt"
DEFAULT_SIZE = (160, 120)
_SIZES = (32, 1024)  # pixels that a side may have
_CLIPS_PER_PROCESS = 20  # below that, starting another process costs more than it saves


@dataclass(frozen=True)
class Recipe:
    """What a corpus' files follow from; kept beside them in ``corpus.json``.

    Attributes:
        seed: Seed of everything random.
        actions: Number of classes.
        width: Image width in pixels.
        height: Image height in pixels.
        revision: ``REVISION`` of the generator.
    """

    seed: int
    actions: int
    width: int
    height: int
    revision: int = REVISION


@dataclass(frozen=True)
class Outcome:
    """What ``generate`` did.

    Attributes:
        made: Clips that were rendered now.
        present: Clips that were already complete.
        seconds: Wall-clock time.
    """

    made: int
    present: int
    seconds: float


def generate(
    out: str | os.PathLike[str],
    clips: int,
    seed: int = 0,
    actions: int = len(ACTIONS),
    size: tuple[int, int] = DEFAULT_SIZE,
    modalities: Sequence[str] = ("rgb", "ir", "depth", "skeleton"),
    workers: int | None = None,
    progress: bool = False,
) -> Outcome:
    """Make a corpus, or what is missing of it.

    Args:
        out: Folder to write to; made where absent.
        clips: How many clips; a smaller corpus is the beginning of a larger one.
        seed: The same seed gives the same files, bit for bit.
        actions: How many of ``ACTIONS``.
        size: Width and height of all images in pixels.
        modalities: Keys of ``files.LAYOUT``.
        workers: Processes; None chooses by clips and cores.
        progress: Whether to show clips done, rate and time left on stderr.

    Returns:
        How much there was to do.

    Raises:
        CorpusError: On arguments out of range, or where the folder holds something else.
    """
    started = time.monotonic()
    names = clip_names(clips, actions)
    root = Path(out)
    _check(size, modalities, workers)
    recipe = Recipe(seed, actions, *size)
    _claim(root, recipe)
    _describe(root, recipe, names)
    missing = [name for name in names if not _complete(root, name, modalities)]
    remove_partial(root)
    jobs = [(root, recipe, name, tuple(modalities)) for name in missing]
    done = _run(jobs, _workers(workers, len(jobs)))
    for _ in _show(done, len(jobs), len(names) - len(jobs)) if progress else done:
        pass
    remove_partial(root)
    return Outcome(len(missing), len(names) - len(missing), time.monotonic() - started)


def read_recipe(root: Path) -> Recipe | None:
    """What the corpus in this folder was made with; None where there is none.

    Raises:
        CorpusError: If ``corpus.json`` is there but is none of ours.
    """
    try:
        return Recipe(**json.loads((root / RECIPE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise CorpusError(
            f"{root / RECIPE}: no corpus description ({error}); choose another --out"
        ) from error


def _check(size: tuple[int, int], modalities: Sequence[str], workers: int | None) -> None:
    unknown = [name for name in modalities if name not in LAYOUT]
    if unknown or not modalities:
        raise CorpusError(
            f"synthetic corpus: --modalities has {unknown or 'nothing'}; there are {', '.join(LAYOUT)}"
        )
    low, high = _SIZES
    if not all(low <= side <= high and side % 2 == 0 for side in size):
        raise CorpusError(
            f"synthetic corpus: --size is {size[0]}x{size[1]}; sides are even and {low} to {high} pixels"
        )
    if workers is not None and workers < 1:
        raise CorpusError(f"synthetic corpus: --workers is {workers}; at least 1")


def _claim(root: Path, recipe: Recipe) -> None:
    """Make the folder ours, or see that it is."""
    if root.exists() and not root.is_dir():
        raise CorpusError(f"{root}: is a file; --out takes a folder")
    found = read_recipe(root)
    if found is None and root.is_dir() and any(root.iterdir()):
        raise CorpusError(f"{root}: holds files but no {RECIPE}; choose an empty --out")
    if found is None:
        root.mkdir(parents=True, exist_ok=True)
        _write(root / RECIPE, json.dumps(asdict(recipe)) + "\n")
    elif found != recipe:
        mine, theirs = asdict(recipe), asdict(found)
        which = ", ".join(
            f"{key} {theirs[key]} (asked: {mine[key]})" for key in mine if mine[key] != theirs[key]
        )
        raise CorpusError(f"{root}: was made with {which}; ask for the same, or choose another --out")


def _describe(root: Path, recipe: Recipe, names: Sequence[NTUName]) -> None:
    """Class names one a line, and captions as CMVRA keeps them; a longer list that is there stays."""
    _write(root / CLASSES, "".join(f"{action.name}\n" for action in ACTIONS[: recipe.actions]))
    lines = [json.dumps({"clip_id": str(name), "text": captions(recipe.seed, name)}) + "\n" for name in names]
    path = root / CAPTIONS
    if not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < len(lines):
        _write(path, "".join(lines))


def _write(path: Path, text: str) -> None:
    with replacing(path.parent, path.name) as part:
        part.write_text(text, encoding="utf-8")


def _complete(root: Path, name: NTUName, modalities: Sequence[str]) -> bool:
    return all((root / LAYOUT[modality].format(clip=name)).exists() for modality in modalities)


Job = tuple[Path, Recipe, NTUName, tuple[str, ...]]


def _make(job: Job) -> None:
    root, recipe, name, modalities = job
    write_clip(film(recipe.seed, name, (recipe.width, recipe.height)), root, str(name), modalities)


def _workers(asked: int | None, jobs: int) -> int:
    return asked or max(1, min(len(os.sched_getaffinity(0)), jobs // _CLIPS_PER_PROCESS))


def _run(jobs: Sequence[Job], workers: int) -> Iterator[None]:
    """Do the jobs, yielding once per finished one."""
    if workers == 1:
        for job in jobs:
            _make(job)
            yield
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_make, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


def _show(done: Iterable[None], missing: int, present: int) -> Iterator[None]:
    from tqdm import tqdm

    if present:
        print(f"{present} clips are complete already, {missing} to make", file=sys.stderr)
    pause = 0.2 if sys.stderr.isatty() else 5.0  # seconds between lines; a log file needs few
    columns = shutil.get_terminal_size().columns
    yield from tqdm(
        done, total=missing, unit="clip", ncols=min(columns, 100), disable=not missing, mininterval=pause
    )
