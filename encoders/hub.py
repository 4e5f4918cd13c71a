"""Models as transformers' ``save_pretrained`` writes them: found on disk or on the hub, loaded strictly.

The network is transformers' own class, so that weights and results are those of the published models. Its
image processors are not used: what they compute depends on the imaging libraries installed, so their values
are read from the folder and the arithmetic is :mod:`encoders.preprocess`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from encoders.checkpoint import SHOWN, LoadReport
from encoders.errors import EncoderError, WeightsError
from encoders.preprocess import ImagePreprocess
from encoders.weights import folder_digest, model_folder

if TYPE_CHECKING:
    from encoders.pretrained import Card

# PIL's numbers, as the configuration files carry them.
INTERPOLATION: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
# Where a processor's values may stand, in transformers' order; from version 5 on nested in one file.
NESTED, NESTED_KEYS = "processor_config.json", ("video_processor", "image_processor")
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def quiet() -> None:
    """No progress bars and reports from transformers: ours say what matters."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def locate(name: str, weights: str | None, card: Card) -> Path:
    """A local folder or file as it is, or a hub id's snapshot: from the local cache, else downloaded.

    Args:
        name: The encoder, for the message.
        weights: What the user gave; None is the official id.
        card: Names that id, its authors' page and its licence.

    Raises:
        WeightsError: If there is no such thing.
    """
    wanted = card.file if weights is None else weights
    path = Path(wanted).expanduser()
    if path.exists():
        return path
    try:
        return _cached(wanted) or model_folder(wanted, name)
    except WeightsError as error:
        official = f"the official one is {card.file}, from {card.published}; licence: {card.licence}"
        raise WeightsError(f"{error}; {official}") from error


def _cached(hub_id: str) -> Path | None:
    """The snapshot of an earlier download, if all of it is there."""
    if hub_id.count("/") != 1 or hub_id.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Whether the configuration and the weights are there, all shards of one format."""
    if not (folder / "config.json").exists():
        return False
    for kind in ("safetensors", "bin"):
        if index := next(folder.glob(f"*.{kind}.index.json"), None):
            shards = set(_read_json(index, str(folder)).get("weight_map", {}).values())
            if all((folder / shard).exists() for shard in shards):
                return True
        elif any(folder.glob(f"*.{kind}")):
            return True
    return False


def _read_json(path: Path, where: str) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"{where}: {path.parent} has no {path.name}; give a folder that save_pretrained wrote"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{where}: {path} is no JSON file: {error}") from error


def read_config(folder: Path, kinds: Collection[str], where: str) -> Any:
    """The folder's configuration as transformers' object.

    Raises:
        WeightsError: If there is none, or its ``model_type`` is not one of ``kinds``.
    """
    kind = _read_json(folder / "config.json", where).get("model_type")
    if kind not in kinds:
        raise WeightsError(f"{where}: {folder} is a {kind!r} model; accepted are: {', '.join(kinds)}")
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def agrees(config: Any, values: Mapping[str, Any]) -> bool:
    """Whether a configuration has these values, nested ones included."""
    return all(
        agrees(getattr(config, key), value) if isinstance(value, Mapping) else getattr(config, key) == value
        for key, value in values.items()
    )


def load(
    folder: Path,
    classes: Sequence[str],
    where: str,
    allow_partial: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, LoadReport]:
    """The folder's model, by the class that saved it: its heads are checked like the rest.

    Args:
        folder: Weights (sharded or not) and ``config.json``.
        classes: transformers' classes that are accepted; the first one where the folder names none of them.
        where: The encoder, for messages.
        allow_partial: Keys, or prefixes ending in ``.``, that may be missing, unexpected or misshapen.
        dtype: Of its parameters; a language model of 34 billion takes 69 GB in bfloat16, twice that else.

    Raises:
        WeightsError: With every key that does not fit and was not named, the tensors that hold NaN or
            infinity, or why nothing could be read.
    """
    import pickle

    import transformers
    from safetensors import SafetensorError

    saved = _read_json(folder / "config.json", where).get("architectures") or classes
    kind = getattr(transformers, saved[0] if saved[0] in classes else classes[0])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what the folder may lack is then the same each time
            model, info = kind.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below with all others
                dtype=dtype,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{where}: cannot read {folder}: {reason}") from error
    _refuse(info, f"{where}: {folder} does not fit {kind.__name__}", tuple(allow_partial))
    bad = sorted(key for key, value in model.state_dict().items() if not value.isfinite().all())
    if bad:
        raise WeightsError(f"{where}: {folder} holds NaN or infinite values: {', '.join(bad[:SHOWN])}")
    misshapen = {key for key, *_ in info["mismatched_keys"]}
    strange = {*info["missing_keys"], *misshapen}
    report = LoadReport(
        loaded=tuple(key for key in model.state_dict() if key not in strange),
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        misshapen=tuple(sorted(misshapen)),
    )
    return model.eval(), report


def _refuse(info: Mapping[str, Any], where: str, partial: tuple[str, ...]) -> None:
    """An error with the keys that do not fit, unless they were named."""
    wrong = {
        "missing_keys": {key: key for key in info["missing_keys"]},
        "unexpected_keys": {key: key for key in info["unexpected_keys"]},
        "mismatched_keys": {
            key: f"{key} {tuple(got)} instead of {tuple(want)}" for key, got, want in info["mismatched_keys"]
        },
    }
    listed = []
    for what, keys in wrong.items():
        refused = sorted(said for key, said in keys.items() if not _allowed(key, partial))
        more = f", and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        listed += [f"{what} ({len(refused)}): {', '.join(refused[:SHOWN])}{more}"] if refused else []
    if listed:
        raise WeightsError(f"{where}: {'; '.join(listed)}; to load the rest, name them with --allow-partial")


def _allowed(key: str, partial: tuple[str, ...]) -> bool:
    return any(key == one or (one.endswith(".") and key.startswith(one)) for one in partial)


def tokenizer(folder: Path, where: str) -> Any:
    """The folder's own tokenizer.

    Raises:
        EncoderError: If it has none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise EncoderError(f"{where}: {folder} has no tokenizer; save it beside the model") from error


def save(
    folder: Path,
    model: Any,
    tensors: Mapping[str, torch.Tensor],
    origin: Path | None = None,
    tokenizer: Any = None,
) -> str:
    """Write a model with other tensors as ``save_pretrained`` does.

    Args:
        folder: Where; made if absent.
        model: transformers' class, with or without heads; it takes the tensors.
        tensors: Under the keys of the model, or of its encoder without heads.
        origin: The folder it was loaded from: processor and tokenizer are copied from there.
        tokenizer: Saved where no folder brings one.

    Returns:
        The folder's digest, by which features name it.
    """
    state, under = model.state_dict(), f"{model.base_model_prefix}."
    model.load_state_dict(
        state | {key if key in state else under + key: value for key, value in tensors.items()}
    )
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for name in (*PROCESSORS, NESTED, *TOKENIZERS):
        if origin is not None and (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    return folder_digest(folder)


# Preprocessing --------------------------------------------------------------------------------------------


def preprocessing(
    folder: Path, published: ImagePreprocess, where: str, any_size: bool = False
) -> ImagePreprocess:
    """The folder's own values; the family's published ones where it does not say.

    Args:
        folder: With or without the processor's file.
        published: At the size of the folder's model.
        where: The encoder, for messages.
        any_size: Whether the model takes frames of other sizes, too.

    Raises:
        WeightsError: If it asks for something that is not done here, or for another size than the model's.
    """
    values = _processor(folder, where)
    where = f"{where}: {folder}: preprocessor"
    resample = values.get("resample")
    if resample is not None and resample not in INTERPOLATION:
        raise WeightsError(f"{where}: resample is {resample}; accepted are 2 (bilinear) and 3 (bicubic)")
    if not values.get("do_resize", True) or not values.get("do_rescale", True):
        raise WeightsError(f"{where}: frames are neither resized nor rescaled; that is not supported")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise WeightsError(f"{where}: rescale_factor is {values['rescale_factor']}; accepted is 1/255")
    plain = not values.get("do_normalize", True)
    ours = replace(
        published,
        **_geometry(values, published, where),
        interpolation=published.interpolation if resample is None else INTERPOLATION[resample],
        mean=(0.0,) * 3 if plain else tuple(values.get("image_mean") or published.mean),
        std=(1.0,) * 3 if plain else tuple(values.get("image_std") or published.std),
    )
    if ours.sides != published.sides and not any_size:
        raise WeightsError(
            f"{where}: it makes frames of {ours.sides} for a model of {published.sides} pixels"
        )
    return ours


def _processor(folder: Path, where: str) -> dict[str, Any]:
    if (folder / NESTED).exists():
        values = _read_json(folder / NESTED, where)
        for key in NESTED_KEYS:
            if key in values:
                return values[key]
    for name in PROCESSORS:
        if (folder / name).exists():
            return _read_json(folder / name, where)
    return {}


def _geometry(values: Mapping[str, Any], published: ImagePreprocess, where: str) -> dict[str, Any]:
    """``size``, ``resize`` and ``centre_fraction`` as :class:`ImagePreprocess` has them."""
    size = values.get("size")
    if size is None:
        return {}
    crops = values.get("do_center_crop", published.resize == "centre")
    if isinstance(size, int):  # as written before sizes were dictionaries
        size = {"shortest_edge": size} if published.resize == "centre" else {"height": size, "width": size}
    squashes = "height" in size and "width" in size
    if set(size) != ({"height", "width"} if squashes else {"shortest_edge"}) or not (squashes or crops):
        raise WeightsError(
            f"{where}: size is {size}{'' if crops else ' without a centre crop'}; accepted are height and "
            "width, or shortest_edge with a centre crop"
        )
    scaled = (size["height"], size["width"]) if squashes else (size["shortest_edge"],) * 2
    kept = _sides(values.get("crop_size"), scaled) if crops else scaled
    fraction = min(kept) / min(scaled)
    if fraction > 1 or (squashes and round(kept[0] / fraction) != scaled[0]):
        raise WeightsError(f"{where}: a crop of {kept} from {scaled} pixels is not supported")
    return {
        "size": kept[0] if kept[0] == kept[1] else kept,
        "resize": "squash" if squashes else "centre",
        "centre_fraction": fraction,
    }


def _sides(size: Any, default: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return default
    return (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size)
