"""Folders of images, one file a frame: 8-bit pictures, and 16-bit depth maps."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from extract.readers.media import (
    DamagedMediaError,
    Frames,
    MediaInfo,
    MissingMediaError,
    NoFramesError,
    UnreadableMediaError,
    checked_file,
)
from extract.sampling import Sampling, frame_indices

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DECODE_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ImageReader:
    """A folder of 8-bit images in the natural order of their names (``2.jpg`` before ``10.jpg``), as RGB.

    Values (T, H, W, 3) uint8. A single image file is a clip of one frame. Options: ``fps`` (30.0), the
    rate at which the images follow each other; ``suffixes``, the file name endings that count.
    """

    revision = 1

    def probe(self, path: str | Path, fps: float = 30.0, suffixes: Any = IMAGE_SUFFIXES) -> MediaInfo:
        """Count and duration from the folder, size from the first image. Raises: ReadError."""
        files = _image_files(path, suffixes)
        try:
            with Image.open(files[0]) as image:
                width, height = image.size
        except DECODE_ERRORS as error:
            raise _damaged(files[0], error) from None
        return MediaInfo(len(files), fps, width, height, len(files) / fps)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        fps: float = 30.0,
        suffixes: Any = IMAGE_SUFFIXES,
    ) -> Frames:
        """The images of [start, end) that ``sampling`` wants; only those are opened.

        A broken image is replaced by its nearest sound neighbour and counted out of ``decoded_frames``.

        Raises:
            ReadError: If the folder is missing, unreadable or holds no image, or none that decodes; if the
                images are not of one size.
            SamplingError: If the span lies outside the sequence.
        """
        files = _image_files(path, suffixes)
        wanted = frame_indices(np.arange(len(files)) / fps, sampling, start_seconds, end_seconds, fps)
        loaded = _Sequence(files, self._load)
        taken = np.array([loaded.nearest(int(index)) for index in wanted])
        values = loaded.stack(taken)
        return Frames(values, taken / fps, fps, len(files), len(files) - len(loaded.broken))

    def _load(self, file: Path) -> np.ndarray:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))


class DepthImageReader(ImageReader):
    """A folder of 16-bit single-channel PNG depth maps (NTU: ``MDepth-00000001.png``).

    Values (T, H, W) uint16 millimetres; 0 = no measurement. Options as `ImageReader`'s, and
    ``millimetres_per_unit`` (1.0; TUM files have 0.2).
    """

    revision = 1

    def probe(
        self,
        path: str | Path,
        fps: float = 30.0,
        suffixes: Any = (".png",),
        millimetres_per_unit: float = 1.0,
    ) -> MediaInfo:
        """As `ImageReader.probe`."""
        return super().probe(path, fps, suffixes)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        fps: float = 30.0,
        suffixes: Any = (".png",),
        millimetres_per_unit: float = 1.0,
    ) -> Frames:
        """As `ImageReader.read`; 8-bit and colour images are refused, as they hold no metric depth."""
        frames = super().read(path, sampling, start_seconds, end_seconds, fps, suffixes)
        if millimetres_per_unit == 1.0:
            return frames
        scaled = np.rint(frames.values * float(millimetres_per_unit)).clip(0, 65535).astype(np.uint16)
        return Frames(scaled, frames.times_seconds, frames.fps, frames.declared_frames, frames.decoded_frames)

    def _load(self, file: Path) -> np.ndarray:
        with Image.open(file) as image:
            if image.mode not in ("I;16", "I;16B", "I"):
                raise DamagedMediaError(
                    file,
                    f"holds {image.mode} pixels",
                    "16-bit single-channel depth is needed (reader 'images' takes pictures)",
                )
            return np.asarray(image).astype(np.uint16)


class _Sequence:
    """Images loaded so far, and which of them are broken."""

    def __init__(self, files: list[Path], load: Any):
        self._files, self._load = files, load
        self._images: dict[int, np.ndarray] = {}
        self.broken: dict[int, Exception] = {}

    def nearest(self, index: int) -> int:
        """The sound image nearest to ``index``, the later one at equal distance."""
        for distance in range(len(self._files)):
            for candidate in dict.fromkeys((index + distance, index - distance)):
                if 0 <= candidate < len(self._files) and self._is_sound(candidate):
                    return candidate
        raise _damaged(self._files[index], self.broken[index])

    def _is_sound(self, index: int) -> bool:
        if index not in self._images and index not in self.broken:
            try:
                self._images[index] = self._load(self._files[index])
            except DamagedMediaError:
                raise  # sound, but of the wrong kind: its neighbours will be no better
            except DECODE_ERRORS as error:
                self.broken[index] = error
        return index in self._images

    def stack(self, indices: np.ndarray) -> np.ndarray:
        images = [self._images[int(index)] for index in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape != images[0].shape:
                sizes = f"{image.shape} beside {images[0].shape} (height, width)"
                raise DamagedMediaError(self._files[int(index)], f"is {sizes}", "one size a clip is needed")
        return np.stack(images)


def _image_files(path: str | Path, suffixes: Any) -> list[Path]:
    """The folder's images in natural order; the path itself if it is a file."""
    folder = Path(path)
    if folder.is_file():
        return [checked_file(folder)]
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(tuple(suffixes))]
    except FileNotFoundError:
        raise MissingMediaError(path, "there is no such folder", "restore it") from None
    except PermissionError as error:
        raise UnreadableMediaError(path, f"cannot be listed ({error.strerror})", "allow reading it") from None
    if not names:
        raise NoFramesError(path, f"the folder holds no {' '.join(suffixes)} file", "fill or remove it")
    return [folder / name for name in sorted(names, key=natural_key) if not name.startswith("._")]


def natural_key(name: str) -> tuple[list[Any], str]:
    """Sorts numbers in names by value: ``f2`` before ``f10``; equal numbers by their text."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if part.isdecimal() else part.lower() for part in parts], name


def _damaged(file: Path, error: Exception) -> DamagedMediaError:
    cause = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
    return DamagedMediaError(file, f"does not decode ({cause})", "copy it again")
