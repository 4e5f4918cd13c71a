"""`--init`: training starts from the heads of an earlier alignment; `--freeze`: some stay as they are.

A head is taken whole or not at all. It only means what it meant with the features it was trained on, so it
comes with its own standardisation, and is refused for another space, field or shape (CMVRA's
`align_pre_training` skips tensors that do not fit without a word).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from align.alignment import Alignment, load
from align.checkpoint import CheckpointError
from align.config import AlignConfig, ModalityConfig
from align.model import Heads, module_key
from align.recipe import ModalityRecipe
from align.standardise import Statistics
from store.errors import FrameBankError

if TYPE_CHECKING:
    from store.bank import Bank

INHERITED = ("encoder", "field", "reduce", "head", "standardise")
BINDING = ("field", "head", "standardise")


Config = TypeVar("Config", bound=AlignConfig)


class StartError(FrameBankError, ValueError):
    """Heads that cannot be started from, or cannot be frozen."""


def pinned(bank: "Bank", config: Config) -> Config:
    """The configuration with `init: latest` as the run it stands for now, which a resumed run finds again."""
    if config.init != "latest":
        return config
    return dataclasses.replace(config, init=f"run:{load(config.init, bank.path).directory.name}")


def earlier(bank: "Bank", config: AlignConfig) -> Alignment | None:
    """The alignment to start from, if any.

    Raises:
        StartError: If its embeddings have another size.
        CheckpointError: If there is none.
    """
    if config.init is None:
        return None
    found = load(config.init, bank.path)
    if found.embedding != config.embedding:
        raise StartError(
            f"--init {config.init}: its heads give {found.embedding} dims, --embedding is "
            f"{config.embedding}; add --embedding {found.embedding}"
        )
    return found


def inherit(modalities: Mapping[str, ModalityConfig], start: Alignment | None) -> dict[str, ModalityConfig]:
    """What is left open about a modality becomes what it was when the head to start from was trained."""
    filled = dict(modalities)
    media = {name: asked.modality or name for name, asked in modalities.items()}
    for name, own in _heads_for(start, media).items():
        asked = modalities[name]
        open_ = {key: own[key] for key in INHERITED if getattr(asked, key) is None}
        options = own["head_options"] if "head" in open_ and not asked.head_options else asked.head_options
        filled[name] = dataclasses.replace(asked, **open_, head_options=options)
    return filled


def take(
    start: Alignment | None, heads: Heads, recipes: Mapping[str, ModalityRecipe]
) -> tuple[dict[str, str], dict[str, Statistics]]:
    """Copy the weights of the heads that ``start`` has for these modalities.

    Returns:
        Modality -> the name of the head it got, and the statistics by which its features are standardised.

    Raises:
        StartError: If there is none, or a head does not fit as a whole.
        SpaceError: If a modality's features are of another space.
    """
    taken, standards = {}, {}
    media = {name: recipe.modality for name, recipe in recipes.items()}
    for name, own in _heads_for(start, media).items():
        assert start is not None
        start.check_space(name, recipes[name].space_digest, recipes[name].feature_set)
        source = start.head_of(name)
        theirs, mine = start.heads.heads[module_key(source)], heads.heads[module_key(name)]
        _refuse_misfit(start, name, own, recipes[name], theirs.state_dict(), mine.state_dict())
        mine.load_state_dict(theirs.state_dict())
        taken[name], standards[name] = source, start.standards[source]
    if start is not None and not taken:
        raise StartError(
            f"--init {start.directory}: it has heads for {', '.join(start.modalities)}, none of which is "
            f"aligned here ({', '.join(recipes)}); leave --init out"
        )
    return taken, standards


def freeze(heads: Heads, names: Iterable[str], taken: Mapping[str, str]) -> list[str]:
    """Keep these heads as they are; the names.

    Raises:
        StartError: If one is not aligned, or would stay at its random start.
    """
    frozen = list(names)
    for name in frozen:
        if name not in heads.modalities:
            raise StartError(
                f"--freeze: {name!r} is not aligned here; modalities: {', '.join(heads.modalities)}"
            )
        if name not in taken and heads.parameter_count(name):
            raise StartError(
                f"--freeze: the {name} head starts at random and would stay so; give it weights by --init, "
                "or choose the head identity"
            )
    heads.freeze(frozen)
    return frozen


def _heads_for(start: Alignment | None, media: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Modality -> settings of the head that ``start`` has for it; those without one are left out.

    A camera view (``ir.ceiling``) may have that of ``ir``; a name of one's own (``rgb.omnivore``) does not.
    """
    if start is None:
        return {}
    found = {}
    for name, modality in media.items():
        if name not in start.modalities and modality != name:
            continue
        try:
            found[name] = start.settings(name)
        except CheckpointError:
            continue
    return found


def _refuse_misfit(
    start: Alignment,
    name: str,
    own: Mapping[str, Any],
    recipe: ModalityRecipe,
    theirs: Mapping[str, Any],
    mine: Mapping[str, Any],
) -> None:
    for key in BINDING:
        if own[key] != (here := getattr(recipe, key)):
            raise StartError(
                f"--init {start.directory}: its {name} head has {key} {own[key]!r}, here it is {here!r}; "
                "leave it out to have the same"
            )
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (theirs, mine)]
    for key in {**shapes[0], **shapes[1]}:
        if shapes[0].get(key) != shapes[1].get(key):
            raise StartError(
                f"--init {start.directory}: its {name} head has {key} of shape {shapes[0].get(key)}, here it "
                f"is {shapes[1].get(key)}; leave out the head's options and reduce to have the same"
            )
