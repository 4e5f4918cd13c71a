"""Where it is filmed: the three cameras and the room of each setup."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_STREAM = 3

# Setup number -> height and distance of the cameras in metres (after the table in NTU RGB+D's README, with
# the nearest ones moved back so that the whole body is seen). Even and odd setups alternate, because
# cross-setup trains on the even ones; all are numbers that NTU RGB+D 60 uses too.
SETUPS = {
    2: (1.7, 2.6),
    3: (1.4, 2.6),
    4: (1.2, 2.9),
    9: (0.8, 2.8),
    12: (2.0, 2.8),
    13: (2.1, 2.9),
    14: (2.2, 3.0),
    17: (2.5, 3.1),
}
AZIMUTHS = {1: 0.0, 2: -np.pi / 4, 3: np.pi / 4}  # camera number -> radians around the performer
_FOCAL_HEIGHTS = 1.12  # focal length in image heights: a person at 3 m fills about 60 % of the height
_ROOM = {"back": -2.0, "left": 3.2, "right": -3.2}  # where the walls are, in metres


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with Kinect v2's axes: x to the sensor's left, y up, z forward, in metres.

    Images grow with x, so they are mirrored, as Kinect's are: a performer's left hand is left in the image.

    Attributes:
        position: (3,) in world axes.
        rotation: (3, 3) world to camera.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    position: np.ndarray
    rotation: np.ndarray
    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return _FOCAL_HEIGHTS * self.height

    def see(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) -> camera axes (..., 3), metres."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera-axes points (..., 3) -> (..., 2) pixel coordinates; (0, 0) is the top left centre."""
        depth = np.maximum(points[..., 2:], 0.3)
        centre = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        return centre + self.focal * points[..., :2] * np.array([1.0, -1.0]) / depth


def make_camera(seed: int, setup: int, camera: int, width: int, height: int) -> Camera:
    """The camera (1 in front, 2 and 3 at 45 degrees to either side) of a setup, looking at the performer."""
    random = np.random.default_rng([seed, _STREAM, 0, setup, camera])
    above, away = SETUPS[setup]
    azimuth = AZIMUTHS[camera] + random.normal(0, 0.03)
    position = np.array([away * np.sin(azimuth), above, away * np.cos(azimuth)])
    forward = np.array([0.0, 0.98, 0.0]) + random.normal(0, 0.03, 3) - position
    forward /= np.linalg.norm(forward)
    left = np.cross([0.0, 1.0, 0.0], forward)
    left /= np.linalg.norm(left)
    return Camera(position, np.stack([left, np.cross(forward, left), forward]), width, height)


@dataclass(frozen=True)
class Room:
    """What a camera sees without the performer, and how it is lit.

    Attributes:
        colour: (H, W, 3) float32 in 0..1.
        infrared: (H, W) float32 in 0..1.
        light: (3,) unit vector towards the lamp, in camera axes.
        ambient: Share of light that comes from everywhere.
        stool: RGB of the stool.
    """

    colour: np.ndarray
    infrared: np.ndarray
    light: np.ndarray
    ambient: float
    stool: tuple[float, float, float]


def _rays(camera: Camera) -> np.ndarray:
    """(H, W, 3) directions of the pixels' rays in world axes."""
    u = (np.arange(camera.width) - (camera.width - 1) / 2) / camera.focal
    v = -(np.arange(camera.height) - (camera.height - 1) / 2) / camera.focal
    x, y = np.meshgrid(u, v)
    return np.stack([x, y, np.ones_like(x)], -1) @ camera.rotation


def _distance(camera: Camera, rays: np.ndarray, axis: int, where: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (where - camera.position[axis]) / rays[..., axis]
    return np.where(distance > 0, distance, np.inf)


def _paint(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Albedo (H, W) of one surface with coordinates u, v in metres: base, planks or tiles, and posters."""
    base = random.uniform(0.2, 0.85)
    out = np.full(u.shape, base)
    period, depth = random.uniform(0.3, 0.9), random.uniform(0, 0.12)
    out *= 1 - depth * ((np.floor(u / period) + random.integers(2) * np.floor(v / period)) % 2)
    for _ in range(random.integers(0, 4)):
        centre_u, centre_v = random.uniform(-2.2, 2.2), random.uniform(0.6, 2.4)
        wide, high = random.uniform(0.15, 0.6, 2)
        inside = (abs(u - centre_u) < wide) & (abs(v - centre_v) < high)
        out = np.where(inside, random.uniform(0.05, 0.95), out)
    return out


@lru_cache(maxsize=64)
def make_room(seed: int, setup: int, camera: int, width: int, height: int) -> Room:
    """The room of a setup as one camera sees it: floor and three walls, ray-cast."""
    eye = make_camera(seed, setup, camera, width, height)
    random = np.random.default_rng([seed, _STREAM, 1, setup])  # one room for the three cameras
    rays = _rays(eye)
    walls = [(1, 0.0), (2, _ROOM["back"]), (0, _ROOM["left"]), (0, _ROOM["right"])]
    distance = np.stack([_distance(eye, rays, axis, where) for axis, where in walls])
    nearest = distance.argmin(0)
    point = eye.position + rays * distance.min(0)[..., None]
    colour, infrared = np.zeros((height, width, 3)), np.zeros((height, width))
    for k, (axis, _) in enumerate(walls):
        u, v = point[..., 0 if axis != 0 else 2], point[..., 2 if axis == 1 else 1]
        paint = _paint(u, v, random)
        tint = 1 + random.uniform(-0.25, 0.25, 3)
        colour = np.where((nearest == k)[..., None], paint[..., None] * tint, colour)
        infrared = np.where(nearest == k, 0.3 + 0.4 * paint * random.uniform(0.5, 1.2), infrared)
    lamp = np.array([random.uniform(-2, 2), random.uniform(1.5, 3), random.uniform(0.5, 3)])
    fall = 1 / (1 + 0.06 * ((point - lamp) ** 2).sum(-1))
    depth = (point - eye.position) @ eye.rotation[2]
    light = eye.rotation @ (lamp - np.array([0, 1, 0]))
    return Room(
        colour=np.clip(1.2 * colour * fall[..., None], 0, 1).astype(np.float32),
        infrared=np.clip(infrared * (2.4 / depth) ** 2, 0, 1).astype(np.float32),
        light=light / np.linalg.norm(light),
        ambient=float(random.uniform(0.35, 0.6)),
        stool=tuple(random.uniform(0.1, 0.7, 3).tolist()),
    )
