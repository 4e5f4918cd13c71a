"""``python -m extract.datasets.synthetic --out DIR --clips N``: make a synthetic NTU corpus."""

from store.cli import run

# isort: split
import re
import sys

from extract.datasets.synthetic.actions import ACTIONS
from extract.datasets.synthetic.corpus import generate
from extract.datasets.synthetic.names import CorpusError


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise CorpusError(f"synthetic corpus: --size is {text!r}; it reads WIDTHxHEIGHT, for example 160x120")
    return int(match[1]), int(match[2])


def synthetic(
    out: str | None = None,
    clips: int = 240,
    seed: int = 0,
    actions: int = len(ACTIONS),
    size: str = "160x120",
    modalities: str = "rgb,ir,depth,skeleton",
    workers: int | None = None,
) -> None:
    """Make a synthetic corpus in the layout of NTU RGB+D, or what is missing of it.

    A 3-D figure with NTU's 25 joints acts out 16 actions; performers differ in build, clothes, tempo and
    handedness, setups in room, light, camera height and distance. Clips are named SsssCcccPpppRrrrAaaa such
    that the official cross-subject, cross-view and cross-setup rules split them.

    Args:
        out: Folder to write to.
        clips: How many clips; asking for more later adds to the corpus.
        seed: The same seed gives the same files, bit for bit.
        actions: How many classes, of: sit down, stand up, pick up, put down, raise arms, lower arms, drink,
            wave, clap, throw, kick, punch, bow, jump, walk in place, crouch.
        size: WIDTHxHEIGHT of all images in pixels.
        modalities: Comma-separated; skeleton-npy is there too.
        workers: Processes; by default as many as there are cores.
    """
    if out is None:
        raise CorpusError("synthetic corpus: --out is missing; name the folder to write to")
    chosen = tuple(modalities.split(","))
    outcome = generate(out, clips, seed, actions, _size(size), chosen, workers, progress=True)
    rate = f" at {outcome.made / outcome.seconds:.1f} clips/s" if outcome.made else ""
    print(f"{out}: {outcome.made} clips made{rate}, {outcome.present} were there", file=sys.stderr)


if __name__ == "__main__":
    run(synthetic, prog="python -m extract.datasets.synthetic")
