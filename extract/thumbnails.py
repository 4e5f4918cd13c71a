"""Small pictures of a clip for reports and search: one frame, and a strip of six, whatever the modality.

Made in the decode workers from the frames that were read anyway. Reports never open media files themselves.
"""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 160  # pixels of the longer side
STRIP_FRAMES = 6
QUALITY = 80  # JPEG

# Pairs of joints that a bone connects, 0-based.
NTU_BONES = (
    (0, 1), (1, 20), (20, 2), (2, 3), (20, 4), (4, 5), (5, 6), (6, 7), (7, 22), (22, 21), (20, 8), (8, 9),
    (9, 10), (10, 11), (11, 24), (24, 23), (0, 12), (12, 13), (13, 14), (14, 15), (0, 16), (16, 17), (17, 18),
    (18, 19),
)  # fmt: skip
KINECT_BONES = (
    (0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11), (3, 12),
    (12, 13), (13, 14), (14, 15), (3, 16), (16, 17), (17, 18), (18, 19),
)  # fmt: skip
BONES = {25: NTU_BONES, 20: KINECT_BONES}

_BACKGROUND = (18, 20, 24)
_INKS = ((250, 170, 60), (80, 180, 250), (150, 220, 110), (240, 110, 140), (190, 150, 250), (230, 230, 230))
# Far to near; unmeasured pixels are black.
_DEPTH_COLOURS = np.array(
    [(30, 20, 70), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)


def write_thumbnails(thumbnail: Path, modality: str, values: np.ndarray, media: str | Path) -> bool:
    """Write ``<clip>.jpg`` and ``<clip>.strip.jpg`` unless they are newer than the media file.

    Args:
        thumbnail: Path of the ``.jpg``; the strip lies beside it.
        modality: ``rgb``, ``ir``, ``depth``, ``skeleton``, ``inertial`` or ``audio``, with or without a
            camera's suffix; others have no picture.
        values: What a reader returned: see :class:`extract.readers.Frames`.
        media: The file that they were read from.

    Returns:
        Whether pictures were written.
    """
    draw = _PICTURES.get(modality.split(".")[0])
    if draw is None or not len(values) or _is_current(thumbnail, media):
        return False
    chosen = ((np.arange(STRIP_FRAMES) + 0.5) * len(values) / STRIP_FRAMES).astype(int)
    frames = draw(values, np.unique(chosen))
    # A signal's small picture is the whole of it, anything else's the frame in the middle.
    single = _plot(_heights(values)) if draw is _plots else frames[len(frames) // 2]
    _save(single, thumbnail)
    _save(_side_by_side(frames), strip_path(thumbnail))
    return True


def strip_path(thumbnail: Path) -> Path:
    """Where the strip of a thumbnail lies."""
    return thumbnail.with_name(thumbnail.name.removesuffix(".jpg") + ".strip.jpg")


def _is_current(thumbnail: Path, media: str | Path) -> bool:
    try:
        made = min(thumbnail.stat().st_mtime, strip_path(thumbnail).stat().st_mtime)
    except FileNotFoundError:
        return False
    return made >= os.stat(media).st_mtime


def _save(picture: Image.Image, path: Path) -> None:
    """Write by rename: a reader never meets half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{os.getpid()}.partial")
    try:
        picture.save(partial, "JPEG", quality=QUALITY)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _side_by_side(frames: list[Image.Image]) -> Image.Image:
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for index, frame in enumerate(frames):
        strip.paste(frame, (index * width, 0))
    return strip


def _size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the picture of a frame, in the frame's aspect; small frames stay as they are."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _images(values: np.ndarray, chosen: np.ndarray) -> list[Image.Image]:
    """Pixels ``(T, H, W, 3)`` uint8, scaled."""
    import torch  # its resizing is 4x as fast as PIL's, and whoever prepares pixels has loaded it
    from torch.nn.functional import interpolate

    width, height = _size(*values.shape[1:3])
    pixels = torch.from_numpy(values[chosen]).permute(0, 3, 1, 2)
    small = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return [Image.fromarray(frame) for frame in small.permute(0, 2, 3, 1).contiguous().numpy()]


def _depths(values: np.ndarray, chosen: np.ndarray) -> list[Image.Image]:
    """Depth ``(T, H, W)`` in millimetres, coloured over the clip's own range; a video's pixels as such."""
    if values.ndim == 4:
        return _images(values, chosen)
    step = max(1, max(values.shape[1:3]) // SIDE)
    maps = values[chosen, ::step, ::step].astype(np.float32)
    measured = maps[maps > 0]
    near, far = np.percentile(measured, (1, 99)) if len(measured) else (0.0, 1.0)
    nearness = np.clip((far - maps) / max(far - near, 1.0), 0, 1) * (len(_DEPTH_COLOURS) - 1)
    stops = np.arange(len(_DEPTH_COLOURS))
    colours = np.stack([np.interp(nearness, stops, channel) for channel in _DEPTH_COLOURS.T], -1)
    colours[maps == 0] = 0
    return _images(colours.astype(np.uint8), np.arange(len(chosen)))


def _skeletons(values: np.ndarray, chosen: np.ndarray) -> list[Image.Image]:
    """Joints ``(T, P, J, 3)`` in metres, seen from the front; one scale for the whole clip."""
    joints = np.nan_to_num(values[chosen][..., :2].astype(np.float64))
    seen = np.abs(values[chosen]).sum((-1, -2)) > 0
    present = joints[seen].reshape(-1, 2)
    low, high = (present.min(0), present.max(0)) if len(present) else (np.zeros(2), np.ones(2))
    scale = 0.9 * SIDE / max(*(high - low), 1e-6)
    # Up is positive in the sensor's coordinates, down in pictures.
    places = (joints - (low + high) / 2) * (scale, -scale) + SIDE / 2
    return [_skeleton(frame, there) for frame, there in zip(places, seen, strict=True)]


def _skeleton(places: np.ndarray, seen: np.ndarray) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), _BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for person in np.flatnonzero(seen):
        ink, points = _INKS[person % len(_INKS)], [tuple(point) for point in places[person].tolist()]
        for a, b in BONES.get(len(points), ()):
            pen.line([points[a], points[b]], ink, 2)
        for x, y in points:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], ink)
    return picture


def _plots(values: np.ndarray, chosen: np.ndarray) -> list[Image.Image]:
    """Signals ``(T, C)`` or ``(T,)``: the strip's frames are windows of one long plot."""
    heights = _heights(values)
    edges = np.linspace(0, len(values), STRIP_FRAMES + 1).astype(int).tolist()
    return [_plot(heights[a : max(b, a + 1) + 1]) for a, b in pairwise(edges) if a < len(values)]


def _heights(values: np.ndarray) -> np.ndarray:
    """Signals -> pixels from the top, each channel over its own range."""
    signals = np.nan_to_num(values.reshape(len(values), -1).astype(np.float64))
    low, high = signals.min(0), signals.max(0)
    return (SIDE - 5) - (signals - low) / np.maximum(high - low, 1e-9) * (SIDE - 10)


def _plot(heights: np.ndarray) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), _BACKGROUND)
    pen = ImageDraw.Draw(picture)
    heights = heights[:: max(1, len(heights) // SIDE)]
    across = np.linspace(0, SIDE, max(len(heights), 2))[: len(heights)]
    for channel, line in enumerate(heights.T):
        pen.line(list(zip(across.tolist(), line.tolist(), strict=True)), _INKS[channel % len(_INKS)], 1)
    return picture


_PICTURES: dict[str, Callable[[np.ndarray, np.ndarray], list[Image.Image]]] = {
    "rgb": _images,
    "ir": _images,
    "depth": _depths,
    "skeleton": _skeletons,
    "inertial": _plots,
    "audio": _plots,
}
