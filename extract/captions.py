"""``python -m extract.captions``: texts about clips, by a vision-language model, or from and to files."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from extract.interrupt import run_resumable
from store.errors import FrameBankError

SHOWN_UNKNOWN = 10


def captions(
    dataset: str | None = None,
    model: str | None = None,
    root: str | None = None,
    bank: str = "bank",
    modality: str = "rgb",
    prompt: str | None = None,
    positions: str = "1/3,1/2,2/3",
    samples: int = 3,
    temperature: float = 0.5,
    max_new_tokens: int = 512,
    seed: int = 0,
    where: str | None = None,
    limit: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
    allow_partial: str | None = None,
    batch_frames: int | None = None,
    workers: int | None = None,
    timeout_seconds: float = 60.0,
    max_failures: float = 0.2,
) -> int:
    """Describe clips with LLaVA-NeXT, into the bank's captions.

    Some frames of each clip are shown to the model, each several times with other random numbers; the texts
    become captions whose source is llava-next@<digest of the model and of these settings>. Clips that have
    captions of this source are left alone: run it again after an interruption and it does the rest; with
    nothing missing it says so. The same clip, position and sample always get the same text. Defaults are
    CMVRA's: 3 frames x 3 texts, temperature 0.5. A clip whose texts are all empty is a failure (CMVRA takes
    the class name then: the answer, as a label-free caption).

    Examples:
      python -m extract.captions --dataset ntu --model llava-hf/llava-v1.6-34b-hf     CMVRA's; 70 GB on a GPU
      python -m extract.captions --dataset ntu --model llava-hf/llava-v1.6-mistral-7b-hf --limit 20
      python -m extract.captions --dataset ntu --model FOLDER --positions 1/2 --samples 1 --temperature 0
      python -m extract.captions ... --device cuda:1 --where "hash(clip_id) % 2 = 1"    half, on another GPU
      python -m extract --dataset ntu --modality text                                   encodes the texts
      python -m extract.captions export --dataset ntu --file captions.jsonl
      python -m extract.captions import --dataset ntu --source llava --file captions.jsonl
      python -m store sql "SELECT source, count(*) FROM captions GROUP BY source"

    Exit status: 0 all done; 1 some clips failed (they are in the table `failures`, stage caption, and tried
    again next time); 2 bad usage; 130 or 143 interrupted (what was done is committed).

    Args:
        dataset: A name under configs/datasets, or the path of such a YAML.
        model: A LLaVA-NeXT: the folder that save_pretrained wrote, or a hub id.
        root: Folder of the media. Needed once; the bank remembers it.
        bank: Folder of the bank; made if absent.
        modality: What is shown to the model: rgb, ir, or a view such as ir.ceiling.
        prompt: The question about each frame; CMVRA's if omitted ("Describe the human action in this frame in
            just one sentence.").
        positions: Where in a clip its frames are, from 0 to 1.
        samples: Texts about each frame.
        temperature: Of the sampling; 0 takes the likeliest words (with one sample).
        max_new_tokens: Longer texts are cut.
        seed: Another one gives other texts.
        where: SQL condition over the columns of `clips`: only those clips.
        limit: At most so many clips in this run.
        precision: Of the weights; auto takes bf16 where it is native.
        device: cpu, cuda, cuda:1; auto takes a GPU if there is one.
        allow_partial: Comma-separated keys that a checkpoint may lack, or prefixes that end in a dot.
        batch_frames: Frames that the model sees at once; 8 on a GPU, 2 on a CPU if omitted.
        workers: Decode processes; one per core if omitted.
        timeout_seconds: A clip whose decoding takes longer fails, its process is killed.
        max_failures: Share of failed clips above which the run stops and shows the commonest error.
    """
    from extract.captioning import CaptionRequest, execute

    partial = tuple(key.strip() for key in (allow_partial or "").split(",") if key.strip())
    request = CaptionRequest(
        dataset=dataset,
        model=model,
        root=root,
        bank=bank,
        modality=modality,
        prompt=prompt,
        positions=positions,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        where=where,
        limit=limit,
        precision=precision,
        device=device,
        allow_partial=partial,
        batch_frames=batch_frames,
        workers=workers,
        timeout_seconds=timeout_seconds,
        max_failures=max_failures,
    )
    return execute(request)


def export_captions(
    dataset: str | None = None, file: Path | None = None, source: str | None = None, bank: str = "bank"
) -> int:
    """Write captions as CMVRA keeps them: a line {"clip_id": ..., "text": [...]} for each clip.

    Args:
        dataset: Whose.
        file: Where to; replaced if it exists.
        source: Which; needed if the dataset has captions of several.
        bank: Folder of the bank.
    """
    from store.bank import Bank
    from store.captions import caption_texts

    if dataset is None or file is None:
        raise FrameBankError("captions export: --dataset NAME and --file FILE.jsonl are needed")
    rows = caption_texts(Bank.open(bank).catalog, dataset, source).to_pylist()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    print(f"{sum(len(row['text']) for row in rows)} captions of {len(rows)} clips in {file}")
    return 0


def import_captions(
    dataset: str | None = None, file: Path | None = None, source: str | None = None, bank: str = "bank"
) -> int:
    """Take over captions from lines {"clip_id": ..., "text": a string or a list}, as CMVRA keeps them.

    Clips are named by their ids or by their files (without folder and ending). They replace what the clips
    have from the same source; what is there twice counts once.

    Args:
        dataset: Whose clips they describe; it must be registered.
        file: The file.
        source: What to call their source.
        bank: Folder of the bank.

    Returns:
        0, or 1 if some clips are unknown (they are listed; the others are imported).
    """
    from extract.datasets.ntu import read_captions
    from store.bank import Bank
    from store.captions import Captioned, add_captions

    if dataset is None or file is None or not source:
        raise FrameBankError(
            "captions import: --dataset NAME, --file FILE.jsonl and --source NAME are needed; the source is "
            "what the captions are known by"
        )
    opened = Bank.open(bank)
    given = read_captions(file, source)
    names = _clip_names(opened, dataset)
    texts: dict[str, dict[str, None]] = {}
    for name, several in given.items():
        if name in names and several:
            texts.setdefault(names[name], {}).update((one.text, None) for one in several)
    add_captions(
        opened.catalog, dataset, source, [Captioned(clip, list(kept)) for clip, kept in texts.items()]
    )
    print(f"{sum(map(len, texts.values()))} captions of {len(texts)} clips imported as {source!r}")
    return _unknown(given, names, dataset)


def _unknown(given: Mapping[str, Any], names: Mapping[str, str], dataset: str) -> int:
    """Say which clips have no place; returns the exit status."""
    from store.tables import shortened

    unknown = [name for name in given if name not in names]
    empty = sum(not several for several in given.values())
    if empty:
        print(f"{empty} clips have no text in the file", file=sys.stderr)
    if unknown:
        shown = shortened(unknown, SHOWN_UNKNOWN)
        print(f"{len(unknown)} clips are not in {dataset}: {shown}", file=sys.stderr)
    return 1 if unknown else 0


def _clip_names(bank: Any, dataset: str) -> dict[str, str]:
    """What a clip may be called -> its id: the id itself, or the name of a file that is its only.

    Raises:
        FrameBankError: If the dataset has no clips.
    """
    ids = bank.sql("SELECT clip_id FROM clips WHERE dataset = ?", [dataset])["clip_id"].to_pylist()
    if not ids:
        raise FrameBankError(
            f"captions import: {bank.path} has no clips of {dataset!r}; "
            f"`python -m extract --dataset {dataset} --register-only` registers them"
        )
    stems: dict[str, set[str]] = {}
    media = bank.sql("SELECT DISTINCT path, clip_id FROM media WHERE dataset = ?", [dataset]).to_pylist()
    for row in media:
        stems.setdefault(Path(row["path"]).stem, set()).add(row["clip_id"])
    unique = {stem: next(iter(clips)) for stem, clips in stems.items() if len(clips) == 1}
    return unique | {clip: clip for clip in ids}


COMMANDS: dict[str, Callable[..., int]] = {"export": export_captions, "import": import_captions}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (``sys.argv`` if None), do it, and exit."""
    given = sys.argv[1:] if argv is None else argv
    component = COMMANDS if given and given[0] in COMMANDS else captions
    run_resumable(component, argv, "python -m extract.captions")


if __name__ == "__main__":
    main()
