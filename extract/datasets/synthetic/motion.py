"""From an action's key poses to channel values per frame: timing, style, idle sway, start and end poses."""

from dataclasses import dataclass

import numpy as np

from extract.datasets.synthetic.actions import (
    ACTIONS,
    CARRY,
    CHANNELS,
    HAND_REST,
    HANDS,
    IDLE_HANDS,
    OVERHEAD,
    SEATED_BACK_LEGS,
    Action,
    Key,
    Style,
    Value,
)
from extract.datasets.synthetic.performer import Performer

FPS = 30.0
_STREAM = 2
_HOLD_SECONDS = (1.0, 1.7)  # stillness before and after the action together, divided at random
_SEATED_SHARE = 0.4  # of the performances of actions that allow it

Channels = dict[str, np.ndarray]  # channel -> (T, 3) or (T,) float64


@dataclass(frozen=True)
class Motion:
    """One performance before it is given a body.

    Attributes:
        channels: Channel -> values per frame, in the units of ``actions.CHANNELS``.
        right_handed: Whether "main" is the performer's right.
        heading: Angle in radians by which the performer is turned to their left, from facing camera 1.
        place: Where the pelvis stands on the floor, (left, forward) in metres.
    """

    channels: Channels
    right_handed: bool
    heading: float
    place: tuple[float, float]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.channels["pitch"])


def ease(phase: np.ndarray) -> np.ndarray:
    """Minimum-jerk course from 0 to 1 (Flash & Hogan 1985), 10 s^3 - 15 s^4 + 6 s^5 for s in [0, 1]."""
    s = np.clip(phase, 0.0, 1.0)
    return s**3 * (10 - 15 * s + 6 * s**2)


def _swing(begin: np.ndarray, end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """From one point to another around the origin (a hand around its shoulder), not through it."""
    start_radius, end_radius = np.linalg.norm(begin), np.linalg.norm(end)
    start, stop = begin / start_radius, end / end_radius
    angle = np.arccos(np.clip(start @ stop, -1.0, 1.0))
    if angle < 1e-4:
        direction = np.broadcast_to(start, (len(weight), 3))
    else:
        direction = (
            np.sin((1 - weight) * angle)[:, None] * start + np.sin(weight * angle)[:, None] * stop
        ) / np.sin(angle)
    return direction * (start_radius + weight * (end_radius - start_radius))[:, None]


def _track(seconds: np.ndarray, times: list[float], values: list[np.ndarray], hand: bool) -> np.ndarray:
    """One channel over time: held before the first key and after the last, eased between."""
    out = np.broadcast_to(values[0], (len(seconds), *values[0].shape)).copy()
    for k in range(1, len(times)):
        later = seconds >= times[k - 1]
        weight = ease((seconds[later] - times[k - 1]) / max(times[k] - times[k - 1], 1e-6))
        step = values[k] - values[k - 1]
        out[later] = (
            _swing(values[k - 1], values[k], weight)
            if hand
            else values[k - 1] + weight.reshape(-1, *[1] * step.ndim) * step
        )
    return out


def _resting_hands(random: np.random.Generator, free: bool) -> dict[str, Value]:
    """Where the hands are when nothing is done with them."""
    if not free:
        return dict.fromkeys(HANDS, HAND_REST)
    pose: dict[str, Value] = {hand: IDLE_HANDS[random.choice(3, p=(0.6, 0.2, 0.2))] for hand in HANDS}
    chance = random.random()
    if chance < 0.15:
        pose |= dict.fromkeys(HANDS, OVERHEAD)
    elif chance < 0.25:
        pose |= {"hand_main": OVERHEAD}
    elif chance < 0.4:
        pose |= {"hand_main": CARRY}
    return pose


def _draw_style(random: np.random.Generator, performer: Performer) -> Style:
    return Style(
        repeats=int(random.integers(3, 6)),
        amplitude=float(performer.amplitude * random.uniform(0.85, 1.15)),
        both=bool(random.random() < 0.6),
        sideways=bool(random.random() < 0.5),
        seat=-0.5 + float(random.uniform(-0.03, 0.05)),
        depth=float(random.random()),
    )


def _settle(keys: list[Key], random: np.random.Generator, action: Action) -> list[Key]:
    """Replace hanging hands at either end by drawn ones, and let unused hands do the same."""
    begin, end = _resting_hands(random, action.free_hands), _resting_hands(random, action.free_hands)
    used = {channel for _, pose in keys for channel in pose}
    if not action.free_hands:
        end = begin
    first, last = dict(keys[0][1]), dict(keys[-1][1])
    for hand in HANDS:
        if first.get(hand, HAND_REST) == HAND_REST:
            first[hand] = begin[hand]
        if last.get(hand, HAND_REST) == HAND_REST:
            last[hand] = end[hand] if hand in used or random.random() < 0.5 else first[hand]
    return [(keys[0][0], first), *keys[1:-1], (keys[-1][0], last)]


def _vary(keys: list[Key], random: np.random.Generator) -> list[Key]:
    """Move hand targets a little, alike wherever a pose recurs, and inner phases too."""
    moved: dict[object, np.ndarray] = {}
    varied: list[Key] = []
    for phase, pose in keys:
        out = dict(pose)
        for hand in HANDS:
            if hand in out:
                value = out[hand]
                if (hand, value) not in moved:
                    moved[hand, value] = np.asarray(value) + random.normal(0, 0.07, 3)
                out[hand] = tuple(moved[hand, value])
        varied.append((phase + (random.normal(0, 0.012) if 0 < phase < 1 else 0.0), out))
    return sorted(varied, key=lambda key: key[0])


def _seat(keys: list[Key], style: Style) -> list[Key]:
    """The same action on the stool: the pelvis stays where it is."""
    kept = [
        (phase, {name: value for name, value in pose.items() if name != "pelvis"}) for phase, pose in keys
    ]
    kept[0][1]["pelvis"] = (0.0, style.seat, SEATED_BACK_LEGS)
    return [(phase, pose) for phase, pose in kept]


def _sway(frames: int, random: np.random.Generator) -> np.ndarray:
    """Slow wandering of unit size: two sinusoids of random phase, below 1 Hz."""
    turns = 2 * np.pi * np.arange(frames) / FPS
    rates, phases = random.uniform(0.15, 0.9, 2), random.uniform(0, 2 * np.pi, 2)
    return np.sin(rates[0] * turns + phases[0]) + 0.5 * np.sin(rates[1] * turns + phases[1])


def _fill(keys: list[Key], frames: int, start: float, duration: float) -> Channels:
    """All channels over time from the keys of an action that starts at ``start`` seconds."""
    seconds = np.arange(frames) / FPS
    channels: Channels = {}
    for name, rest in CHANNELS.items():
        named = [(phase, pose[name]) for phase, pose in keys if name in pose]
        timed = [(start + phase * duration, np.asarray(value, float)) for phase, value in named]
        if not timed:
            timed = [(0.0, np.asarray(rest, float))]
        channels[name] = _track(seconds, [t for t, _ in timed], [v for _, v in timed], name in HANDS)
    return channels


def _add_idling(channels: Channels, performer: Performer, random: np.random.Generator) -> None:
    """Sway, slump and glances that have nothing to do with the action."""
    frames = len(channels["pitch"])
    channels["pitch"] += performer.slump + random.normal(0, 0.05) + 0.015 * _sway(frames, random)
    channels["roll"] += random.normal(0, 0.03) + 0.015 * _sway(frames, random)
    channels["twist"] += random.normal(0, 0.08) + 0.03 * _sway(frames, random)
    channels["nod"] += random.normal(0, 0.1) + 0.04 * _sway(frames, random)
    channels["look"] += random.normal(0, 0.2) + 0.12 * _sway(frames, random)
    channels["pelvis"][:, 0] += 0.012 * _sway(frames, random)
    for hand in HANDS:
        channels[hand] += 0.012 * np.stack([_sway(frames, random) for _ in range(3)], 1)


def perform(action: int, performer: Performer, identity: list[int]) -> Motion:
    """One performance of an action.

    Args:
        action: Action number, from 1.
        performer: Who performs it.
        identity: Integers that identify the performance (seed, setup, performer, replication, action); the
            same ones give the same motion, whichever camera films it.

    Returns:
        The motion, 1 to 4 seconds at ``FPS``.
    """
    what = ACTIONS[action - 1]
    random = np.random.default_rng([identity[0], _STREAM, *identity[1:]])
    style = _draw_style(random, performer)
    hold = random.uniform(*_HOLD_SECONDS)
    before = hold * random.beta(0.7, 0.7)
    duration = what.seconds / (performer.tempo * random.uniform(0.85, 1.15))
    frames = round((duration + hold) * FPS)
    seated = what.posture == "any" and random.random() < _SEATED_SHARE
    keys = what.keys(style)
    keys = _vary(_settle(keys, random, what), random)
    if seated:
        keys = _seat(keys, style)
    channels = _fill(keys, frames, before, duration)
    _add_idling(channels, performer, random)
    return Motion(
        channels=channels,
        right_handed=performer.right_handed if random.random() < 0.9 else not performer.right_handed,
        heading=float(random.normal(0, 0.14)),
        place=(float(random.uniform(-0.3, 0.3)), float(random.uniform(-0.25, 0.25))),
    )
