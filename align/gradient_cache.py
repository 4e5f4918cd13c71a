"""A contrastive step over more clips than pass through an encoder at once, with the gradient of all together.

Gradient caching (Gao et al. 2021, arXiv:2101.06983): every part is embedded without a graph, the loss of all
embeddings gives the gradient of each, and then each part is embedded again, with a graph, which takes its
share of that gradient on to the parameters. Costs one more forward pass; memory is that of one part.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Part = Callable[[], Tensor]


def backward(
    parts: Mapping[str, Sequence[Part]], loss: Callable[[dict[str, Tensor]], Tensor], scale: float = 1.0
) -> Tensor:
    """Add the gradient of ``scale * loss`` to all parameters that the parts and the loss depend on.

    Args:
        parts: Modality -> its parts in order: each call gives the same ``(b, E)``, with its graph where
            gradients are on; what is random in it (dropout) must repeat.
        loss: Modality -> (B, E), its parts joined -> scalar; may have parameters of its own.
        scale: Of the gradient.

    Returns:
        The loss, detached.
    """
    if all(len(own) == 1 for own in parts.values()):  # all of it passes at once: one forward pass is enough
        value = loss({name: own[0]() for name, own in parts.items()})
        (value * scale).backward()
        return value.detach()
    with torch.no_grad():
        found = {name: [part() for part in own] for name, own in parts.items()}
    leaves = {name: torch.cat(own).requires_grad_() for name, own in found.items()}
    value = loss(leaves)
    (value * scale).backward()
    for name, own in parts.items():
        whole = leaves[name].grad
        if whole is None:  # nothing is paired with this modality here
            continue
        for part, gradient in zip(own, whole.split([len(one) for one in found[name]]), strict=True):
            part().backward(gradient)
    return value.detach()
