"""Who performs: body measures, clothing and manner of one performer, all a function of (seed, performer)."""

from dataclasses import dataclass

import numpy as np

_STREAM = 1  # keeps these random numbers apart from those of motions, places and recordings

Colour = tuple[float, float, float]

# Sides are the anatomical ones; hand and foot lengths are measured along the bone.
_RATIOS = {  # lengths as fractions of stature (roughly Winter, "Biomechanics of Human Movement", fig. 4.1)
    "thigh": 0.245,
    "shin": 0.246,
    "foot": 0.13,
    "ankle_height": 0.039,
    "hip_half_width": 0.055,
    "lower_spine": 0.15,
    "upper_spine": 0.15,
    "neck": 0.045,
    "head": 0.085,
    "shoulder_half_width": 0.115,
    "upper_arm": 0.186,
    "forearm": 0.146,
    "hand": 0.1,
}


@dataclass(frozen=True)
class Performer:
    """One performer.

    Attributes:
        lengths: Segment lengths in metres, keys as in anthropometric tables ("thigh", "shin", ...).
        girth: Multiplies all radii of the body.
        colours: Material ("skin", "hair", "shirt", "trousers", "shoes") -> RGB in 0..1.
        infrared: Material -> reflectance near 850 nm in 0..1 (unrelated to the visible colour).
        short_sleeves: Whether forearms are bare.
        short_trousers: Whether shins are bare.
        stripes: Stripe count of the shirt; 0 for a plain one.
        right_handed: Which side is the main one.
        tempo: Multiplies speed.
        amplitude: Multiplies excursions.
        slump: Habitual forward bend in radians.
        stance: Half distance between the feet in metres.
    """

    lengths: dict[str, float]
    girth: float
    colours: dict[str, Colour]
    infrared: dict[str, float]
    short_sleeves: bool
    short_trousers: bool
    stripes: int
    right_handed: bool
    tempo: float
    amplitude: float
    slump: float
    stance: float

    @property
    def leg(self) -> float:
        """Thigh plus shin, in metres."""
        return self.lengths["thigh"] + self.lengths["shin"]

    @property
    def arm(self) -> float:
        """Upper arm plus forearm, in metres."""
        return self.lengths["upper_arm"] + self.lengths["forearm"]


_SKIN = ((0.95, 0.78, 0.66), (0.85, 0.64, 0.5), (0.68, 0.47, 0.34), (0.45, 0.3, 0.22))
_HAIR = ((0.1, 0.08, 0.07), (0.35, 0.22, 0.12), (0.75, 0.6, 0.35), (0.6, 0.6, 0.62))


def _cloth(random: np.random.Generator) -> Colour:
    base = random.uniform(0.05, 0.95)
    tint = random.uniform(-0.35, 0.35, 3)
    red, green, blue = np.clip(base + tint, 0.03, 0.97)
    return float(red), float(green), float(blue)


def make_performer(seed: int, performer: int) -> Performer:
    """The performer with this number in the corpus of this seed.

    Args:
        seed: Seed of the corpus.
        performer: NTU performer number, from 1.

    Returns:
        Always the same person for the same arguments.
    """
    random = np.random.default_rng([seed, _STREAM, performer])
    stature = random.uniform(1.5, 1.95)
    lengths = {name: float(ratio * stature * random.normal(1, 0.04)) for name, ratio in _RATIOS.items()}
    colours = {
        "skin": _SKIN[random.integers(len(_SKIN))],
        "hair": _HAIR[random.integers(len(_HAIR))],
        "shirt": _cloth(random),
        "trousers": _cloth(random),
        "shoes": _cloth(random),
    }
    reflectance = {"skin": 0.55, "hair": 0.3, "shirt": 0.65, "trousers": 0.55, "shoes": 0.4}
    return Performer(
        lengths=lengths,
        girth=float(random.uniform(0.85, 1.25)),
        colours=colours,
        infrared={name: float(value * random.uniform(0.6, 1.4)) for name, value in reflectance.items()},
        short_sleeves=bool(random.random() < 0.5),
        short_trousers=bool(random.random() < 0.25),
        stripes=int(random.integers(4, 8)) if random.random() < 0.3 else 0,
        right_handed=bool(random.random() < 0.75),
        tempo=float(random.uniform(0.8, 1.25)),
        amplitude=float(random.uniform(0.85, 1.2)),
        slump=float(random.uniform(-0.03, 0.15)),
        stance=float(random.uniform(0.08, 0.16)),
    )
