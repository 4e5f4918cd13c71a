"""Capsules -> depth buffer -> pixels, all frames of a clip at once.

A capsule is drawn as a billboard: per pixel the nearest point of its projected axis, the radius there, and a
bulge of sqrt(1 - (distance / radius)^2) towards the camera. Only the rectangle that a capsule covers is
touched, which makes a clip cost milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extract.datasets.synthetic.body import Capsule
from extract.datasets.synthetic.scene import Camera

NOTHING = np.inf  # depth where no capsule is


@dataclass(frozen=True)
class Buffers:
    """What each pixel shows.

    Attributes:
        depth: (T, H, W) float32 metres along the optical axis, ``NOTHING`` where empty.
        part: (T, H, W) int8 index into the capsules drawn; meaningless where empty, as all that follow.
        normal: (T, H, W, 2) float32 x (right) and y (down) of the surface normal.
        along: (T, H, W) float32 position 0..1 along the capsule.
    """

    depth: np.ndarray
    part: np.ndarray
    normal: np.ndarray
    along: np.ndarray


def empty_buffers(frames: int, camera: Camera) -> Buffers:
    """Buffers in which nothing has been drawn."""
    shape = (frames, camera.height, camera.width)
    return Buffers(
        depth=np.full(shape, NOTHING, np.float32),
        part=np.empty(shape, np.int8),
        normal=np.empty((*shape, 2), np.float32),
        along=np.empty(shape, np.float32),
    )


def draw(buffers: Buffers, capsules: Sequence[Capsule], camera: Camera, first: int = 0) -> None:
    """Draw capsules into buffers, nearer surfaces over farther ones.

    Args:
        buffers: Changed in place.
        capsules: World axes; T = 1 for things that do not move.
        camera: Who sees them; its image size is that of the buffers.
        first: Part number of the first capsule.
    """
    for k, capsule in enumerate(capsules):
        _draw_one(buffers, capsule, camera, first + k)


def overlay(buffers: Buffers, still: Buffers) -> None:
    """Draw what does not move (T = 1) into all frames, where it is nearer."""
    frames, pixels = len(buffers.depth), buffers.depth[0].size
    drawn = np.flatnonzero(still.depth < NOTHING)
    nearer = still.depth.reshape(-1)[drawn] < buffers.depth.reshape(frames, pixels)[:, drawn]
    frame, which = np.nonzero(nearer)
    for moving, standing in zip(vars(buffers).values(), vars(still).values(), strict=True):
        moving.reshape(frames * pixels, -1)[frame * pixels + drawn[which]] = standing.reshape(pixels, -1)[
            drawn[which]
        ]


def _spread(points: np.ndarray, frames: int) -> np.ndarray:
    return np.broadcast_to(points, (frames, 3))


def _draw_one(buffers: Buffers, capsule: Capsule, camera: Camera, part: int) -> None:
    frames, height, width = buffers.depth.shape
    begin, end = (camera.see(_spread(p, frames)) for p in (capsule.begin, capsule.end))
    a, b = (camera.project(p).astype(np.float32) for p in (begin, end))
    za, zb = (np.maximum(p[:, 2], 0.3).astype(np.float32) for p in (begin, end))
    ra, rb = (np.float32(r * camera.focal) / z for r, z in zip(capsule.radii, (za, zb), strict=True))
    u0, columns = _span(np.minimum(a[:, 0] - ra, b[:, 0] - rb), np.maximum(a[:, 0] + ra, b[:, 0] + rb), width)
    v0, rows = _span(np.minimum(a[:, 1] - ra, b[:, 1] - rb), np.maximum(a[:, 1] + ra, b[:, 1] + rb), height)
    x = (u0[:, None] + np.arange(columns)).astype(np.float32)[:, None, :] - a[:, 0, None, None]
    y = (v0[:, None] + np.arange(rows)).astype(np.float32)[:, :, None] - a[:, 1, None, None]
    axis = (b - a)[:, :, None, None]
    along = (x * axis[:, 0] + y * axis[:, 1]) / np.maximum((axis**2).sum(1), 1e-6)
    along = np.clip(along, 0, 1, out=along)
    radius = ra[:, None, None] + along * (rb - ra)[:, None, None]
    x = (x - along * axis[:, 0]) / radius
    y = (y - along * axis[:, 1]) / radius
    bulge = 1 - x * x - y * y
    hit = np.nonzero(bulge > 0)
    frame, row, column = hit[0], hit[1] + v0[hit[0]], hit[2] + u0[hit[0]]
    t, r = along[hit], capsule.radii[0] + along[hit] * (capsule.radii[1] - capsule.radii[0])
    depth = za[frame] + t * (zb - za)[frame] - np.sqrt(bulge[hit]) * np.float32(r)
    pixel = (frame * height + row) * width + column
    nearer = depth < buffers.depth.reshape(-1)[pixel]
    pixel, inside = pixel[nearer], tuple(index[nearer] for index in hit)
    buffers.depth.reshape(-1)[pixel] = depth[nearer]
    buffers.part.reshape(-1)[pixel] = part
    buffers.along.reshape(-1)[pixel] = t[nearer]
    normal = buffers.normal.reshape(-1, 2)
    normal[pixel, 0], normal[pixel, 1] = x[inside], y[inside]


def _span(low: np.ndarray, high: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """First pixel per frame and the length, common to all frames, of the span that holds [low, high]."""
    length = min(int(np.ceil((high - low).max())) + 2, size)
    return np.clip(np.floor(low).astype(np.int64), 0, size - length), length
