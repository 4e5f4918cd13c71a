"""What the figure does: each action is a short list of timed key poses, and a clip strings them together.

A pose names *channels* of the figure and gives their values; a channel that a pose does not name is left to
its neighbours in time, and one that no pose names stays at rest. Pairs such as sit down / stand up are exact
time reversals of one another, most actions pass through poses of others, all of them start and end in poses
drawn from the same set, and most are done standing or seated: single frames say little, their order tells.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Value = float | tuple[float, float, float]
Pose = Mapping[str, Value]
Key = tuple[float, Pose]  # (phase 0..1 within the action, pose)

# Channels and their resting values. Lengths of hands are in arm lengths from the shoulder (outward, up,
# forward in the chest's frame), of feet in leg lengths from the stance (outward, up, forward), of the pelvis
# in leg lengths (left, up, forward); angles in radians. "main" is the performer's preferred side.
HAND_REST = (0.12, -0.95, 0.06)
CHANNELS: dict[str, Value] = {
    "pelvis": (0.0, 0.0, 0.0),
    "pitch": 0.0,  # torso bent forward
    "roll": 0.0,  # torso leaning to the main side
    "twist": 0.0,  # chest turned to the other side
    "nod": 0.0,  # head bent forward
    "look": 0.0,  # head turned to the main side
    "hand_main": HAND_REST,
    "hand_other": HAND_REST,
    "foot_main": (0.0, 0.0, 0.0),
    "foot_other": (0.0, 0.0, 0.0),
}
HANDS = ("hand_main", "hand_other")

CARRY = (-0.08, -0.42, 0.46)
OVERHEAD = (0.22, 0.9, 0.14)
# Where idle hands are: hanging, folded low in front, on the hip.
IDLE_HANDS = (HAND_REST, (-0.18, -0.74, 0.36), (0.14, -0.56, -0.04))
MOUTH = (-0.3, 0.22, 0.3)
WAVE_OUT, WAVE_IN = (0.52, 0.52, 0.22), (0.0, 0.68, 0.26)
CLAP_OPEN, CLAP_SHUT = (0.16, -0.12, 0.62), (-0.31, -0.08, 0.58)
GUARD, JAB = (-0.16, -0.06, 0.4), (-0.22, 0.04, 0.96)
COCKED, RELEASE, FOLLOW = (0.4, 0.42, -0.32), (0.0, 0.32, 0.88), (-0.25, -0.5, 0.6)
TO_FLOOR = (0.02, -0.3, 0.93)
SEATED_BACK_LEGS = -0.44  # how far behind the stance a seated pelvis is, in leg lengths


@dataclass(frozen=True)
class Style:
    """How one performance is done; drawn anew for each (seed, setup, performer, replication, action).

    Attributes:
        repeats: How often a periodic action repeats.
        amplitude: Multiplies excursions of torso, feet and pelvis.
        both: Raise/lower uses both hands.
        sideways: Raise/lower goes through the side rather than the front.
        seat: Height of the seated pelvis relative to standing, in leg lengths (negative).
        depth: How deep crouches and bends go, 0..1.
    """

    repeats: int = 3
    amplitude: float = 1.0
    both: bool = True
    sideways: bool = True
    seat: float = -0.45
    depth: float = 0.5


def _sit_down(style: Style) -> list[Key]:
    seated: Pose = {"pelvis": (0.0, style.seat, SEATED_BACK_LEGS), "pitch": 0.0}
    lowering: Pose = {
        "pelvis": (0.0, 0.45 * style.seat, 0.6 * SEATED_BACK_LEGS),
        "pitch": 0.65 * style.amplitude,
    }
    return [(0.0, {"pelvis": (0.0, 0.0, 0.0), "pitch": 0.0}), (0.5, lowering), (1.0, seated)]


def _pick_up(style: Style) -> list[Key]:
    drop = -0.12 - 0.3 * style.depth
    low: Pose = {
        "pelvis": (0.0, drop, -0.06),
        "pitch": 1.3 - 0.35 * style.depth,
        "hand_main": TO_FLOOR,
        "hand_other": (0.1, -0.7, 0.5),
        "nod": 0.2,
    }
    upright: Pose = {"pelvis": (0.0, 0.0, 0.0), "pitch": 0.0, "nod": 0.0}
    return [
        (0.0, {**upright, "hand_main": HAND_REST, "hand_other": HAND_REST}),
        (0.45, low),
        (0.55, low),
        (1.0, {**upright, "hand_main": CARRY, "hand_other": HAND_REST}),
    ]


def _raise(style: Style) -> list[Key]:
    hands = HANDS if style.both else HANDS[:1]
    via = (0.93, 0.05, 0.1) if style.sideways else (0.1, 0.05, 0.93)
    course = ((0.0, HAND_REST), (0.5, via), (1.0, OVERHEAD))
    return [(phase, dict.fromkeys(hands, hand)) for phase, hand in course]


def _drink(style: Style) -> list[Key]:
    sip: Pose = {"hand_main": MOUTH, "nod": -0.25 * style.amplitude}
    begin: Pose = {"hand_main": HAND_REST, "nod": 0.0}
    return [(0.0, begin), (0.35, sip), (0.65, sip), (1.0, begin)]


def _throw(style: Style) -> list[Key]:
    turn = 0.45 * style.amplitude
    return [
        (0.0, {"hand_main": HAND_REST, "twist": 0.0, "pitch": 0.0}),
        (0.4, {"hand_main": COCKED, "twist": -turn, "pitch": -0.08}),
        (0.58, {"hand_main": RELEASE, "twist": 0.6 * turn, "pitch": 0.15}),
        (0.72, {"hand_main": FOLLOW, "twist": turn, "pitch": 0.22}),
        (1.0, {"hand_main": HAND_REST, "twist": 0.0, "pitch": 0.0}),
    ]


def _alternate(count: int, first: Pose, second: Pose, start: float = 0.2, end: float = 0.8) -> list[Key]:
    phases = np.linspace(start, end, 2 * count + 1)
    return [(float(phase), second if k % 2 else first) for k, phase in enumerate(phases)]


def _between(begin: Pose, keys: list[Key]) -> list[Key]:
    return [(0.0, begin), *keys, (1.0, begin)]


def _clap(style: Style) -> list[Key]:
    apart, together = dict.fromkeys(HANDS, CLAP_OPEN), dict.fromkeys(HANDS, CLAP_SHUT)
    return _between(dict.fromkeys(HANDS, HAND_REST), _alternate(style.repeats, apart, together))


def _wave(style: Style) -> list[Key]:
    swings = _alternate(style.repeats, {"hand_main": WAVE_OUT}, {"hand_main": WAVE_IN})
    return _between({"hand_main": HAND_REST}, swings)


def _kick(style: Style) -> list[Key]:
    lift: Pose = {"foot_main": (0.0, 0.26, 0.1), "pitch": 0.0}
    swing: Pose = {"foot_main": (0.05, 0.3 + 0.25 * style.depth, 0.74), "pitch": -0.22 * style.amplitude}
    count = 1 + style.repeats // 4
    return _between({"foot_main": (0.0, 0.0, 0.0), "pitch": 0.0}, _alternate(count, lift, swing))


def _punch(style: Style) -> list[Key]:
    guard: Pose = {"hand_main": GUARD, "hand_other": GUARD, "twist": 0.0}
    jab: Pose = {"hand_main": JAB, "hand_other": GUARD, "twist": 0.35 * style.amplitude}
    hanging: Pose = {**dict.fromkeys(HANDS, HAND_REST), "twist": 0.0}
    return _between(hanging, _alternate(style.repeats - 1, guard, jab))


def _bow(style: Style) -> list[Key]:
    upright, bent = {"pitch": 0.0, "nod": 0.0}, {"pitch": 0.75 + 0.4 * style.depth, "nod": 0.25}
    return _between(upright, [(0.42, bent), (0.6, bent)])


def _jump(style: Style) -> list[Key]:
    height = 0.16 + 0.14 * style.depth
    back, front = dict.fromkeys(HANDS, (0.2, -0.85, -0.35)), dict.fromkeys(HANDS, (0.25, -0.5, 0.55))
    dip: Pose = {"pelvis": (0.0, -0.26, -0.05), "pitch": 0.4, **_feet(0.0), **back}
    air: Pose = {"pelvis": (0.0, height, 0.0), "pitch": 0.0, **_feet(height), **front}
    ground: Pose = {"pelvis": (0.0, 0.0, 0.0), "pitch": 0.0, **_feet(0.0), **dict.fromkeys(HANDS, HAND_REST)}
    return _between(ground, _alternate(1 + style.repeats // 4, dip, air, 0.22, 0.8))


def _feet(up: float) -> Pose:
    return {"foot_main": (0.0, up, 0.0), "foot_other": (0.0, up, 0.0)}


def _walk(style: Style) -> list[Key]:
    up, down = (0.0, 0.24 + 0.1 * style.depth, 0.14), (0.0, 0.0, 0.0)
    back, forward = (0.12, -0.88, -0.3), (0.1, -0.8, 0.45)
    left: Pose = {"foot_main": up, "foot_other": down, "hand_main": back, "hand_other": forward}
    right: Pose = {"foot_main": down, "foot_other": up, "hand_main": forward, "hand_other": back}
    stand: Pose = {**_feet(0.0), **dict.fromkeys(HANDS, HAND_REST)}
    return _between(stand, _alternate(style.repeats, left, right, 0.12, 0.88))


def _crouch(style: Style) -> list[Key]:
    arms = dict.fromkeys(HANDS, (0.05, -0.3, 0.8) if style.sideways else HAND_REST)
    low: Pose = {"pelvis": (0.0, -0.32 - 0.22 * style.depth, -0.14), "pitch": 0.55, **arms}
    up: Pose = {"pelvis": (0.0, 0.0, 0.0), "pitch": 0.0, **dict.fromkeys(HANDS, HAND_REST)}
    return _between(up, [(0.42, low), (0.58, low)])


def reversed_in_time(keys: list[Key]) -> list[Key]:
    """The same poses in the opposite order."""
    return [(1.0 - phase, pose) for phase, pose in reversed(keys)]


@dataclass(frozen=True)
class Action:
    """One class of the corpus.

    Attributes:
        name: The class name, as captions and label texts use it.
        keys: Style -> timed key poses.
        seconds: Typical duration at tempo 1.
        posture: Where it starts: "any" (standing or seated), "standing" or "seated".
        ends: Posture afterwards where the action changes it, else None.
        free_hands: Whether hands may come from, and go to, any pose of the shared set; False where the way
            from hanging hands to another pose is the action itself.
    """

    name: str
    keys: Callable[[Style], list[Key]]
    seconds: float
    posture: str = "any"
    ends: str | None = None
    free_hands: bool = True


# The order is the numbering A001, A002, ...; a corpus of K actions takes the first K.
ACTIONS: tuple[Action, ...] = (
    Action("sit down", _sit_down, 1.1, "standing", "seated"),
    Action("stand up", lambda style: reversed_in_time(_sit_down(style)), 1.1, "seated", "standing"),
    Action("pick up", _pick_up, 1.3, free_hands=False),
    Action("put down", lambda style: reversed_in_time(_pick_up(style)), 1.3, free_hands=False),
    Action("raise arms", _raise, 0.9, free_hands=False),
    Action("lower arms", lambda style: reversed_in_time(_raise(style)), 0.9, free_hands=False),
    Action("drink", _drink, 1.4),
    Action("wave", _wave, 1.4),
    Action("clap", _clap, 1.3),
    Action("throw", _throw, 1.2),
    Action("kick", _kick, 1.2),
    Action("punch", _punch, 1.2),
    Action("bow", _bow, 1.3),
    Action("jump", _jump, 1.5, "standing"),
    Action("walk in place", _walk, 1.6),
    Action("crouch", _crouch, 1.2, "standing"),
)
