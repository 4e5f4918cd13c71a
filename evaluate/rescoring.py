"""Scores made anew out of all queries' scores: transductive, so never to be reported beside plain ones.

Both need the whole query set at once: a query's ranking changes with the other queries asked. They help
where some items ("hubs") are near everything. Results made with them carry the name of the method.
"""

import numpy as np
from numpy.typing import ArrayLike

DSL_SCALE = 100.0


def dual_softmax(scores: ArrayLike, scale: float = DSL_SCALE) -> np.ndarray:
    """(Q, G) -> each score times its share among all queries' scores for the same item.

    Cheng et al. 2021, arXiv:2109.04290; CLIP-ViP and CMVRA use a scale of 100 on cosines.
    """
    values = np.asarray(scores, np.float64)
    return values * inverted_softmax(values, scale)


def inverted_softmax(scores: ArrayLike, scale: float = DSL_SCALE) -> np.ndarray:
    """(Q, G) -> each score's share among all queries' for the same item (Smith et al. 2017, ICLR, eq. 8)."""
    values = np.asarray(scores, np.float64) * scale
    powers = np.exp(values - values.max(axis=0, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=0, keepdims=True)
    return shares


RESCORINGS = {"dual-softmax": dual_softmax, "inverted-softmax": inverted_softmax}
