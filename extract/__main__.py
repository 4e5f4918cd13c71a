"""``python -m extract``: encode what a dataset's clips lack in the bank, and nothing else."""

from typing import Any, Literal

from encoders import ENCODERS
from extract.interrupt import run_resumable


def extract(
    dataset: str | None = None,
    modality: str | None = None,
    root: str | None = None,
    bank: str = "bank",
    encoder: str | None = None,
    weights: str | None = None,
    preset: str | None = None,
    allow_partial: str | None = None,
    frames: int | Literal["all"] | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    fields: str | None = None,
    tokens: Literal["none", "pooled", "grid2", "grid4", "all"] | None = None,
    modalities: dict[str, Any] | None = None,
    views: int = 1,
    where: str | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
    workers: int | None = None,
    batch_frames: int | None = None,
    timeout_seconds: float = 60.0,
    max_failures: float = 0.2,
    register_only: bool = False,
) -> int:
    """Encode clips once, into the bank: decode what is missing, encode it, store it.

    Registers the dataset (clips, protocols, captions, class texts), asks the catalog which clips lack
    features, and does only those. Run it again after an interruption, or after adding or replacing files, and
    it does the rest; with nothing missing it says so and does nothing. Another sampling, encoder, preset or
    precision writes another feature set beside the first. What it will take on disk is said, field by field,
    before the first clip is read; more than is free is refused.

    Examples:
      python -m extract --dataset ntu --root /data/ntu            all its modalities; the root is remembered
      python -m extract --dataset ntu --modality depth            one of them
      python -m extract --dataset ntu --modality depth --fps 4    another sampling: a second feature set
      python -m extract --dataset ntu --modality rgb --encoder clip --weights openai/clip-vit-base-patch16
      python -m extract --dataset ntu --modality rgb --encoder clip-vip-b16 --weights FILE.pt --tokens grid4
      python -m extract --dataset ntu --modality rgb+depth --encoder omnivore-swin-b --weights FILE.torch
      python -m extract --dataset ntu --modality skeleton --where "camera = '1' AND label < 60"
      python -m extract --dataset my/dataset.yaml --views 3       crops, flips and time windows, seeded
      python -m store sql "SELECT * FROM coverage"                what there is
      python -m store sql "SELECT clip_id, stage, error FROM failures"

    A recipe is a file with any of these options; what the command line says counts more:
      python -m extract --dataset ntu --config configs/extract/cmvra.yaml --weights rgb=A.pt,ir=B.torch
      python -m extract --dataset synthetic --config configs/extract/cmvra.yaml --weights random
    Weights that are random make features without meaning, for tests; the feature set's name says so.

    Exit status: 0 all done; 1 some clips failed (they are in the table `failures`, and tried again next
    time); 2 bad usage; 130 or 143 interrupted (what was done is committed).

    Args:
        dataset: A name under configs/datasets, or the path of such a YAML.
        modality: Comma-separated: rgb, ir, depth, skeleton, inertial, audio, text; rgb+depth for both at
            once, from clips that have both. All of the YAML's if omitted.
        root: Folder of the media. Needed once; the bank remembers it.
        bank: Folder of the bank; made if absent.
        encoder: Instead of the YAML's (`python -m encoders list` tells more): ENCODERS.
        weights: Checkpoint file, model folder or hub id for the encoder, instead of its own; "random" for
            tests; rgb=FILE,ir=FILE for several modalities.
        preset: Preprocessing of encoders that have a choice: official (its authors'), cmvra, small.
        allow_partial: Comma-separated keys that a checkpoint may lack, or prefixes that end in a dot.
        frames: That many frames from each clip, evenly spread, or "all".
        fps: Frames at this rate instead.
        max_frames: Thin out what "all" or fps gives to at most so many.
        fields: Comma-separated outputs of the encoder (embedding, cls, tokens.grid2); its default ones if
            omitted.
        tokens: Which token field: none, the mean token of a step (pooled), means over a grid of 2 x 2 or
            4 x 4, or all of them.
        modalities: For recipes: modality -> its encoder, weights, sampling, fields and options, as in a
            dataset's YAML and instead of its.
        views: Views of each clip; the first is the plain one.
        where: SQL condition over the columns of `clips`: only those clips.
        precision: bf16 is 2-5 times as fast where native; auto takes it there, if the encoder bears it.
        device: cpu, cuda, cuda:1; auto takes a GPU if there is one.
        workers: Decode processes; one per core if omitted.
        batch_frames: Frames in an encoder batch.
        timeout_seconds: A clip whose decoding takes longer fails, its process is killed.
        max_failures: Share of failed clips above which the run stops and shows the commonest error.
        register_only: Write clips, protocols and texts only (to import features that others extracted).
    """
    from extract.command import Request, execute
    from extract.datasets.config import parse_modalities
    from extract.resolve import Choices

    choices = Choices(
        encoder=encoder,
        modalities=parse_modalities("extract: modalities", modalities or {}),
        weights=weights,
        preset=preset,
        allow_partial=_names(allow_partial),
        frames=frames,
        fps=fps,
        max_frames=max_frames,
        fields=_names(fields),
        tokens=tokens,
        precision=precision,
        device=device,
        views=views,
        where=where,
    )
    request = Request(
        dataset=dataset,
        modality=modality,
        root=root,
        bank=bank,
        choices=choices,
        workers=workers,
        batch_frames=batch_frames,
        timeout_seconds=timeout_seconds,
        max_failures=max_failures,
        register_only=register_only,
    )
    return execute(request)


# From the table itself, so that the help cannot forget one.
extract.__doc__ = (extract.__doc__ or "").replace("ENCODERS", ", ".join(ENCODERS))


def _names(text: str | None) -> tuple[str, ...] | None:
    """``a, b`` -> its parts."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), extract, and exit."""
    run_resumable(extract, argv, "python -m extract")


if __name__ == "__main__":
    main()
