"""From a performance to what the sensors record: colour, infrared and depth frames, and tracked joints."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from extract.datasets.ntu_names import NTUName
from extract.datasets.synthetic.body import STOOL, Capsule, dress, place_stool
from extract.datasets.synthetic.figure import INDEX, pose_joints
from extract.datasets.synthetic.motion import perform
from extract.datasets.synthetic.performer import Performer, make_performer
from extract.datasets.synthetic.render import NOTHING, Buffers, draw, empty_buffers, overlay
from extract.datasets.synthetic.scene import Camera, Room, make_camera, make_room

_STREAM = 4
_NOISE_SIZE = 1 << 21
_COLOUR_NOISE, _INFRARED_NOISE = 3.0, 4.0  # standard deviations in grey levels
_JOINT_NOISE_METRES = 0.006
_HIDDEN_NOISE_METRES = 0.02
_DEPTH_NOISE = 0.0012  # standard deviation in metres per square metre of distance


@dataclass(frozen=True)
class Film:
    """What was recorded of one clip; T frames at ``motion.FPS``.

    Attributes:
        rgb: (T, H, W, 3) uint8.
        ir: (T, H, W) uint8.
        depth: (T, H, W) uint16 millimetres, 0 off the body.
        joints: (T, 25, 3) float32 metres in camera axes, order ``figure.JOINTS``.
        pixels: (T, 25, 2) float32 image coordinates of the joints.
        tracked: (T, 25) uint8, NTU's tracking state: 2 tracked, 1 inferred (hidden behind the trunk).
    """

    rgb: np.ndarray
    ir: np.ndarray
    depth: np.ndarray
    joints: np.ndarray
    pixels: np.ndarray
    tracked: np.ndarray


@lru_cache(maxsize=4)
def _noise_reel(seed: int, sigma: float) -> np.ndarray:
    """A reel of normal int8 noise that is cut from at random places: drawing it anew is 10x slower."""
    random = np.random.default_rng([seed, _STREAM])
    return np.clip(np.rint(sigma * random.standard_normal(_NOISE_SIZE)), -127, 127).astype(np.int8)


def _cut_noise(seed: int, sigma: float, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` consecutive values of a reel, from a random place on, wrapping around."""
    reel, start = _noise_reel(seed, sigma), int(random.integers(_NOISE_SIZE))
    if start + count <= _NOISE_SIZE:
        return reel[start : start + count]
    return np.resize(np.roll(reel, -start), count)


def film(seed: int, name: NTUName, size: tuple[int, int]) -> Film:
    """Record one clip.

    Args:
        seed: Seed of the corpus.
        name: Setup, camera, performer, replication and action; camera apart, they fix the performance.
        size: Width and height in pixels.

    Returns:
        All modalities, the same for the same arguments.
    """
    performer, joints, stool = _stage(seed, name)
    camera = make_camera(seed, name.setup, name.camera, *size)
    room = make_room(seed, name.setup, name.camera, *size)
    random = np.random.default_rng([seed, _STREAM, *astuple(name)])
    body = dress(joints, performer)
    buffers = empty_buffers(len(joints), camera)
    still = empty_buffers(1, camera)
    draw(still, stool, camera, first=len(body))
    draw(buffers, body, camera)
    overlay(buffers, still)
    capsules = body + stool
    shown = np.flatnonzero(buffers.depth < NOTHING)
    seen, pixels, tracked = _track(joints, camera, random)
    return Film(
        rgb=_expose_colour(buffers, shown, capsules, performer, room, random, seed),
        ir=_expose_infrared(buffers, shown, capsules, performer, room, random, seed),
        depth=_expose_depth(buffers, shown, len(body), random, seed),
        joints=seen,
        pixels=pixels,
        tracked=tracked,
    )


def track(seed: int, name: NTUName, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints, pixels and tracking states of ``film``, without rendering (some ten times faster)."""
    _, joints, _ = _stage(seed, name)
    camera = make_camera(seed, name.setup, name.camera, *size)
    return _track(joints, camera, np.random.default_rng([seed, _STREAM, *astuple(name)]))


def _stage(seed: int, name: NTUName) -> tuple[Performer, np.ndarray, list[Capsule]]:
    performer = make_performer(seed, name.performer)
    identity = [seed, name.setup, name.performer, name.replication, name.action]
    motion = perform(name.action, performer, identity)
    return performer, pose_joints(motion, performer), place_stool(motion, performer)


def _track(
    joints: np.ndarray, camera: Camera, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seen = camera.see(joints)
    hidden = _behind_trunk(seen)
    spread = np.where(hidden, _HIDDEN_NOISE_METRES, _JOINT_NOISE_METRES)[..., None]
    seen = seen + spread * random.standard_normal(seen.shape)
    return (
        seen.astype(np.float32),
        camera.project(seen).astype(np.float32),
        np.where(hidden, 1, 2).astype(np.uint8),
    )


def _behind_trunk(seen: np.ndarray) -> np.ndarray:
    """(T, 25) whether a joint lies in the shadow that the trunk throws from the camera."""
    base, top = seen[:, [INDEX["spine_base"]]], seen[:, [INDEX["spine_shoulder"]]]
    on_image = seen[..., :2] / seen[..., 2:]
    a, b = base[..., :2] / base[..., 2:], top[..., :2] / top[..., 2:]
    axis = b - a
    along = np.clip(((on_image - a) * axis).sum(-1) / (axis**2).sum(-1), 0, 1)[..., None]
    aside = np.linalg.norm(on_image - a - along * axis, axis=-1) * seen[..., 2]
    behind = seen[..., 2] - (base + along * (top - base))[..., 2]
    return (aside < 0.12) & (behind > 0.12)


def _shaded(buffers: Buffers, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the shown pixels: part, position along it, (n, 3) unit normal (right, down, to the camera)."""
    across = buffers.normal.reshape(-1, 2)[shown]
    towards = np.sqrt(np.maximum(1 - (across**2).sum(1, keepdims=True), 0))
    return buffers.part.reshape(-1)[shown], buffers.along.reshape(-1)[shown], np.hstack([across, towards])


def _expose_colour(
    buffers: Buffers,
    shown: np.ndarray,
    capsules: Sequence[Capsule],
    performer: Performer,
    room: Room,
    random: np.random.Generator,
    seed: int,
) -> np.ndarray:
    part, along, normal = _shaded(buffers, shown)
    palette = performer.colours | {STOOL: room.stool}
    albedo = np.array([palette[capsule.material] for capsule in capsules], np.float32)[part]
    stripes = np.array([capsule.stripes for capsule in capsules], np.float32)[part]
    albedo *= np.where(np.sin(2 * np.pi * stripes * along) < 0, 0.55, 1.0)[:, None]
    light = (room.light * np.array([1.0, -1.0, -1.0])).astype(np.float32)
    lit = room.ambient + (1 - room.ambient) * np.maximum(normal @ light, 0)
    surface = 255 * albedo * lit[:, None]
    tint = random.uniform(0.75, 1.2) * (1 + random.uniform(-0.08, 0.08, 3))
    gradient = _gradient(room.infrared.shape, random)[..., None]
    frames = _backdrop(len(buffers.depth), 255 * room.colour * gradient * tint, random)
    tones = surface * (gradient.reshape(-1, 1)[shown % gradient.size] * tint)
    frames.reshape(-1, 3)[shown] = np.clip(tones, 0, 255).astype(np.uint8)
    return _add_noise(frames, _COLOUR_NOISE, random, seed)


def _expose_infrared(
    buffers: Buffers,
    shown: np.ndarray,
    capsules: Sequence[Capsule],
    performer: Performer,
    room: Room,
    random: np.random.Generator,
    seed: int,
) -> np.ndarray:
    part, _, normal = _shaded(buffers, shown)
    reflectance = performer.infrared | {STOOL: 0.35}
    surface = np.array([reflectance[capsule.material] for capsule in capsules], np.float32)[part]
    surface *= (0.25 + 0.75 * normal[:, 2]) * (2.4 / buffers.depth.reshape(-1)[shown]) ** 2
    gain = 255 * random.uniform(0.75, 1.15)
    frames = _backdrop(
        len(buffers.depth), gain * room.infrared * _gradient(room.infrared.shape, random), random
    )
    frames.reshape(-1)[shown] = np.clip(gain * surface, 0, 255).astype(np.uint8)
    return _add_noise(frames, _INFRARED_NOISE, random, seed)


def _expose_depth(
    buffers: Buffers, shown: np.ndarray, body_parts: int, random: np.random.Generator, seed: int
) -> np.ndarray:
    """Masked to the body, noisier with distance, with holes where the surface turns away."""
    on_body = buffers.part.reshape(-1)[shown] < body_parts
    pixel = shown[on_body]
    metres = buffers.depth.reshape(-1)[pixel]
    noise = _cut_noise(seed, 16.0, len(pixel), random) / np.float32(16)
    grazing = (buffers.normal.reshape(-1, 2)[pixel] ** 2).sum(1) > 0.93
    millimetres = 1000 * (metres + _DEPTH_NOISE * metres**2 * noise)
    out = np.zeros(buffers.depth.shape, np.uint16)
    out.reshape(-1)[pixel] = np.where(grazing & (noise > 0.8), 0, np.rint(millimetres))
    return out


def _gradient(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """(H, W) light that falls off linearly across the image in a random direction."""
    angle, strength = random.uniform(0, 2 * np.pi), random.uniform(0, 0.3)
    v, u = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    return (1 + strength * (np.cos(angle) * u + np.sin(angle) * v)).astype(np.float32)


def _backdrop(frames: int, still: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(T, *still.shape) uint8: the room, with a few patches that move behind the performer."""
    out = np.empty((frames, *still.shape), np.uint8)
    out[:] = np.clip(still, 0, 255).astype(np.uint8)
    height, width = still.shape[:2]
    for _ in range(random.integers(0, 4)):
        wide, high = (int(random.uniform(0.05, 0.22) * width), int(random.uniform(0.08, 0.4) * height))
        tone = random.integers(20, 236, still.shape[2:])
        left = random.uniform(-0.2, 1.0) * width + random.uniform(-0.6, 0.6) * width * np.arange(frames) / 60
        top = random.uniform(-0.1, 0.7) * height + random.normal(0, 0.1) * height * np.arange(frames) / 60
        for t, (u, v) in enumerate(zip(left.astype(int), top.astype(int), strict=True)):
            out[t, max(v, 0) : max(v + high, 0), max(u, 0) : max(u + wide, 0)] = tone
    return out


def _add_noise(frames: np.ndarray, sigma: float, random: np.random.Generator, seed: int) -> np.ndarray:
    """Sensor noise and a slow wobble of exposure; frames are changed in place and returned."""
    wobble = 3 * np.sin(random.uniform(0, 6.3) + np.arange(len(frames)) * random.uniform(0.02, 0.2))
    for frame, offset in zip(frames, np.rint(wobble).astype(np.int16), strict=True):
        noise = _cut_noise(seed, sigma, frame.size, random).reshape(frame.shape)
        noisy = np.add(frame, noise, dtype=np.int16)
        noisy += offset
        frame[:] = np.clip(noisy, 0, 255, out=noisy)
    return frames
