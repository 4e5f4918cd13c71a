"""Flesh and clothes: a figure and its stool as tapered capsules between points."""

from dataclasses import dataclass

import numpy as np

from extract.datasets.synthetic.actions import SEATED_BACK_LEGS
from extract.datasets.synthetic.figure import INDEX
from extract.datasets.synthetic.motion import Motion
from extract.datasets.synthetic.performer import Performer

STOOL = "stool"


@dataclass(frozen=True)
class Capsule:
    """A rounded cone.

    Attributes:
        begin: (T, 3) centre of one end, in metres.
        end: (T, 3) centre of the other.
        radii: Radius at either end, in metres.
        material: Key of ``Performer.colours`` and ``.infrared``, or ``STOOL``.
        stripes: Stripe count along the capsule; 0 for plain.
    """

    begin: np.ndarray
    end: np.ndarray
    radii: tuple[float, float]
    material: str
    stripes: int = 0


def dress(joints: np.ndarray, performer: Performer) -> list[Capsule]:
    """The performer's visible body.

    Args:
        joints: (T, 25, 3) positions in metres.
        performer: Whose girth and clothes.

    Returns:
        About twenty capsules, in the joints' axes.
    """

    def at(name: str) -> np.ndarray:
        return joints[:, INDEX[name]]

    girth = performer.girth
    limbs = [capsule for side in ("left", "right") for capsule in _limbs(at, side, performer)]
    return _head(at) + _trunk(at, girth, performer.stripes) + limbs


def _head(at) -> list[Capsule]:
    neck, head, top = at("neck"), at("head"), at("spine_shoulder")
    up = (head - neck) / np.linalg.norm(head - neck, axis=1, keepdims=True)
    across = at("left_shoulder") - at("right_shoulder")
    ahead = np.cross(across, up)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    crown = head + 0.045 * up - 0.028 * ahead
    return [
        Capsule(head - 0.04 * up + 0.012 * ahead, head + 0.035 * up, (0.076, 0.088), "skin"),
        Capsule(crown, crown - 0.05 * up - 0.03 * ahead, (0.088, 0.075), "hair"),
        Capsule(top, neck + 0.02 * up, (0.055, 0.05), "skin"),
    ]


def _trunk(at, girth: float, stripes: int) -> list[Capsule]:
    base, spine, top = at("spine_base"), at("spine_mid"), at("spine_shoulder")
    parts = [Capsule(at("left_hip"), at("right_hip"), (0.098 * girth,) * 2, "trousers")]
    for side in ("left", "right"):
        flank = base + 0.65 * (at(f"{side}_hip") - base)
        under_arm = top + 0.55 * (at(f"{side}_shoulder") - top) - 0.12 * (top - spine)
        parts.append(Capsule(flank, under_arm, (0.088 * girth, 0.092 * girth), "shirt", stripes))
    parts.append(Capsule(base, top - 0.1 * (top - spine), (0.1 * girth, 0.1 * girth), "shirt", stripes))
    parts.append(Capsule(at("left_shoulder"), at("right_shoulder"), (0.056 * girth,) * 2, "shirt"))
    return parts


def _limbs(at, side: str, performer: Performer) -> list[Capsule]:
    girth = performer.girth
    sleeve = "skin" if performer.short_sleeves else "shirt"
    leg = "skin" if performer.short_trousers else "trousers"
    hip, knee, ankle, foot = (at(f"{side}_{name}") for name in ("hip", "knee", "ankle", "foot"))
    shoulder, elbow, wrist, tip = (
        at(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist", "hand_tip")
    )
    return [
        Capsule(hip, knee, (0.085 * girth, 0.06 * girth), "trousers"),
        Capsule(knee, ankle, (0.058 * girth, 0.04 * girth), leg),
        Capsule(ankle, foot, (0.044, 0.034), "shoes"),
        Capsule(shoulder, elbow, (0.053 * girth, 0.042 * girth), "shirt"),
        Capsule(elbow, wrist, (0.041 * girth, 0.032 * girth), sleeve),
        Capsule(wrist, tip, (0.034, 0.028), "skin"),
    ]


def place_stool(motion: Motion, performer: Performer) -> list[Capsule]:
    """The stool that stands behind every performer, whether or not the action uses it.

    Args:
        motion: For where the performer stands and faces.
        performer: For the height of the seat.

    Returns:
        Capsules with T = 1.
    """
    height = 0.52 * performer.leg - 0.02
    back = SEATED_BACK_LEGS * performer.leg
    cosine, sine = np.cos(motion.heading), np.sin(motion.heading)

    def at(left: float, up: float, ahead: float) -> np.ndarray:
        x, z = cosine * left + sine * ahead, cosine * ahead - sine * left
        return np.array([[motion.place[0] + x, up, motion.place[1] + z]])

    boards = [
        Capsule(at(-0.15, height - 0.08, back + z), at(0.15, height - 0.08, back + z), (0.035,) * 2, STOOL)
        for z in (-0.13, -0.065, 0.0, 0.065, 0.13)
    ]
    legs = [
        Capsule(at(0.75 * x, height - 0.1, back + 0.75 * z), at(x, 0.0, back + z), (0.02,) * 2, STOOL)
        for x in (-0.18, 0.18)
        for z in (-0.15, 0.15)
    ]
    return boards + legs
