"""The heads of all modalities as one module, and how a recipe's names become classes."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from align import HEADS, LOSSES, find
from store.errors import FrameBankError


class OptionError(FrameBankError, ValueError):
    """An option that a head or loss does not have, or a value it refuses."""


@dataclass
class HeadSpec:
    """What it takes to build one modality's head.

    Args:
        head: Name in ``align.HEADS``.
        tokens: N.
        dim: D.
        options: The head's own options.
    """

    head: str
    tokens: int
    dim: int
    options: dict[str, Any] = field(default_factory=dict)


def build(
    table: Mapping[str, str], kind: str, name: str, given: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """An instance of a table's class.

    Args:
        table: ``HEADS`` or ``LOSSES``.
        kind: ``head`` or ``loss``, for messages.
        name: Key in the table.
        given: Arguments that the recipe fixes.
        options: Arguments that the user chose.

    Raises:
        UnknownNameError: If the table lacks the name.
        OptionError: If the class lacks an option, or refuses its value.
    """
    cls = find(table, kind, name)
    accepted = [key for key in inspect.signature(cls).parameters if key not in given]
    for key in options:
        if key not in accepted:
            raise OptionError(f"{kind} {name}: no option {key!r}; accepted: {', '.join(accepted) or 'none'}")
    try:
        return cls(**given, **options)
    except FrameBankError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise OptionError(f"{kind} {name}: {error}") from error


def module_key(modality: str) -> str:
    """A modality's name inside parameter names, where a dot has a meaning already (``ir.ceiling``)."""
    return modality.replace(".", ":")


class Heads(nn.Module):
    """One head a modality, all into the same E dimensions."""

    def __init__(self, specs: Mapping[str, HeadSpec], embedding: int):
        super().__init__()
        self.modalities = list(specs)
        self.embedding = embedding
        self.frozen: list[str] = []
        self.heads = nn.ModuleDict()
        for modality, spec in specs.items():
            shape = {"tokens": spec.tokens, "dim": spec.dim, "embedding": embedding}
            self.heads[module_key(modality)] = build(HEADS, "head", spec.head, shape, spec.options)

    def parameter_count(self, modality: str) -> int:
        """How many numbers one modality's head learns."""
        return sum(parameter.numel() for parameter in self.heads[module_key(modality)].parameters())

    def freeze(self, modalities: Sequence[str]) -> None:
        """Train these heads no more: no gradients, no dropout."""
        self.frozen = list(modalities)
        for name in self.frozen:
            self.heads[module_key(name)].requires_grad_(False)

    def train(self, mode: bool = True) -> "Heads":
        """As of any module, but frozen heads stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.heads[module_key(name)].eval()
        return self

    def embed(self, modality: str, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        embedded: Tensor = self.heads[module_key(modality)](features, mask)
        return embedded

    def forward(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """All modalities of a batch."""
        return {name: self.embed(name, values, masks[name]) for name, values in features.items()}


class WeightedLosses(nn.Module):
    """Sum of weight x loss."""

    def __init__(self, terms: Sequence[tuple[float, nn.Module]]):
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList([term for _, term in terms])

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        present: Tensor | None = None,
        labels: Tensor | None = None,
        texts: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """Scalar; arguments as in :meth:`align.losses.InfoNCE.forward`."""
        values = [
            weight * term(embeddings, present, labels, texts, clips)
            for weight, term in zip(self.weights, self.terms, strict=True)
        ]
        return sum(values[1:], start=values[0])

    def after_step(self) -> None:
        """Let each term restore its bounds after an optimiser step."""
        for term in self.terms:
            restore = getattr(term, "after_step", None)
            if callable(restore):
                restore()

    @property
    def temperature(self) -> float | None:
        """Of the first term that has one."""
        found = (getattr(term, "temperature", None) for term in self.terms)
        return next((float(value) for value in found if value is not None), None)


def build_losses(terms: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> WeightedLosses:
    """The recipe's losses: [{name, weight, pairs, options}] -> module; wrong pairs are refused here."""
    from align.pairs import resolve_pairs

    built = []
    for term in terms:
        resolve_pairs(term["pairs"], modalities)
        built.append(
            (term["weight"], build(LOSSES, "loss", term["name"], {"pairs": term["pairs"]}, term["options"]))
        )
    return WeightedLosses(built)
