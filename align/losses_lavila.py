"""InfoNCE for batches that mix annotated texts and generated ones, as LaViLa is trained.

Source: Zhao et al., LaViLa (CVPR 2023), github.com/facebookresearch/LaViLa: its loss for semi-supervision.
"""

import torch
from torch import Tensor

from align.losses import info_nce

PSEUDO_TEMPERATURE = 0.08  # where LaViLa's second temperature starts


def pseudo_info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    pseudo_scale: Tensor | float,
    annotated: Tensor,
) -> Tensor:
    """Symmetric InfoNCE whose temperature depends on how both clips of a logit came by their text.

    ``l_ij = sqrt(s_i s_j) <first_i, second_j>`` with ``s_i = scale`` if clip i's text is annotated, else
    ``pseudo_scale``: two annotated clips meet at ``scale``, two generated ones at ``pseudo_scale``, one of
    each at the geometric mean. With equal scales it is :func:`align.losses.info_nce`.

    Args:
        first: (B, E) unit rows.
        second: (B, E) unit rows.
        scale: 1 / temperature of annotated pairs.
        pseudo_scale: 1 / temperature of generated ones; LaViLa learns both.
        annotated: (B,) bool.

    Returns:
        Scalar; log B when the embeddings have collapsed into one point and the scales are equal.
    """
    # Each row takes its share of the scale along: sqrt(s_i) sqrt(s_j) is a product of rows.
    one, other = (
        torch.as_tensor(value, dtype=first.dtype, device=first.device) for value in (scale, pseudo_scale)
    )
    share = torch.where(annotated, one, other).sqrt()[:, None]
    return info_nce(share * first, share * second, 1.0)
