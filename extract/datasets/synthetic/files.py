"""A film as files in the layout and formats of NTU RGB+D; every file appears complete or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from extract.datasets.synthetic.figure import JOINTS, PARENTS
from extract.datasets.synthetic.films import Film
from extract.datasets.synthetic.motion import FPS

# Modality -> path of a clip's file or folder, relative to the corpus.
LAYOUT = {
    "rgb": "nturgb+d_rgb/{clip}_rgb.avi",
    "ir": "nturgb+d_ir/{clip}_ir.avi",
    "depth": "nturgb+d_depth_masked/{clip}",
    "skeleton": "nturgb+d_skeletons/{clip}.skeleton",
    "skeleton-npy": "nturgb+d_skeletons_npy/{clip}.skeleton.npy",
}
_PARTIAL = ".partial-"  # and a process: folder of what it is writing
_BODY_ID = 72057594037900000  # Kinect's tracking ids are of this size
_QUANTISER = 4  # of mpeg4, 1 (best) to 31
_LEAVES = tuple(k for k in range(len(JOINTS)) if k not in PARENTS)  # Kinect gives these no orientation


def write_clip(film: Film, root: Path, clip: str, modalities: Sequence[str]) -> None:
    """Write a clip's modalities under the corpus' root, replacing what is there.

    Args:
        film: What to write.
        root: Folder of the corpus.
        clip: NTU clip name.
        modalities: Keys of ``LAYOUT``.
    """
    for modality in modalities:
        with replacing(root, LAYOUT[modality].format(clip=clip)) as path:
            _WRITERS[modality](film, path, clip)


@contextmanager
def replacing(root: Path, relative: str) -> Iterator[Path]:
    """A path for a file or folder that becomes ``root / relative`` once the body is done."""
    final, partial = root / relative, root / f"{_PARTIAL}{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with this number
    for folder in (final.parent, partial):
        folder.mkdir(parents=True, exist_ok=True)
    path = partial / final.name
    try:
        yield path
        if final.is_dir():
            shutil.rmtree(final)
        path.replace(final)
    finally:
        shutil.rmtree(partial)


def remove_partial(root: Path) -> None:
    """Remove what processes that are gone were writing."""
    for folder in root.glob(f"{_PARTIAL}*"):
        if not _alive(int(folder.name.removeprefix(_PARTIAL))):
            shutil.rmtree(folder)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_video(frames: np.ndarray, pixels: str, path: Path) -> None:
    """Write (T, H, W[, 3]) uint8 as MPEG-4 part 2 with XVID's tag, as NTU's are, at 30 frames a second."""
    import av

    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=round(FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.codec_tag = "XVID"
        codec.thread_count = 1  # more would make the bits depend on the machine
        codec.options = {"qmin": str(_QUANTISER), "qmax": str(_QUANTISER), "flags": "+bitexact"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=pixels)))
        container.mux(stream.encode(None))


def _write_rgb(film: Film, path: Path, clip: str) -> None:
    _write_video(film.rgb, "rgb24", path)


def _write_infrared(film: Film, path: Path, clip: str) -> None:
    _write_video(film.ir, "gray", path)


def _write_depth(film: Film, path: Path, clip: str) -> None:
    from PIL import Image

    path.mkdir()
    for number, frame in enumerate(film.depth, 1):
        Image.fromarray(frame).save(path / f"MDepth-{number:08d}.png", compress_level=1)


def _orientations(joints: np.ndarray) -> np.ndarray:
    """(T, 25, 3) -> (T, 25, 4) quaternions w x y z that turn the y axis along each joint's bone."""
    bone = joints - joints[:, PARENTS]
    bone[:, 0] = joints[:, 1] - joints[:, 0]
    bone /= np.maximum(np.linalg.norm(bone, axis=-1, keepdims=True), 1e-6)
    # Half-way rotation from (0, 1, 0) to the bone: (1 + y, y x bone), normalised.
    out = np.stack([1 + bone[..., 1], bone[..., 2], np.zeros_like(bone[..., 0]), -bone[..., 0]], -1)
    out /= np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-6)
    out[:, _LEAVES] = 0
    return out


def _write_skeleton(film: Film, path: Path, clip: str) -> None:
    """NTU's text: frame count; per frame body count; per body an info line, joint count and joint lines.

    A joint line is x y z, depth x y, colour x y, orientation w x y z, tracking state. Both pixel positions
    are those in the files written here, whose streams share one viewpoint.
    """
    numbers = np.concatenate([film.joints, film.pixels, film.pixels, _orientations(film.joints)], -1)
    lean = film.joints[:, 20, :2] - film.joints[:, 0, :2]
    body = _BODY_ID + int(clip[9:12])
    joint = " ".join(["%.7g"] * numbers.shape[-1]) + " %d\n"
    frame = f"1\n{body} 0 1 1 1 1 0 %.7g %.7g 2\n{len(JOINTS)}\n" + joint * len(JOINTS)
    lines = [f"{len(numbers)}\n"]
    for k, values in enumerate(numbers):
        row = np.hstack([values, film.tracked[k][:, None]]).ravel().tolist()
        lines.append(frame % (*lean[k].tolist(), *row))
    path.write_text("".join(lines), encoding="ascii")


def _write_skeleton_array(film: Film, path: Path, clip: str) -> None:
    """The pickled dict that users convert the text to (CMVRA: ``Dataset_utils/NTU/prepskeletondata.py``)."""
    record = {
        "file_name": clip,
        "nbodys": [1] * len(film.joints),
        "njoints": len(JOINTS),
        "skel_body0": film.joints,
        "rgb_body0": film.pixels,
        "depth_body0": film.pixels,
    }
    with path.open("wb") as file:
        np.save(file, np.array(record, dtype=object))


_WRITERS: dict[str, Callable[[Film, Path, str], None]] = {
    "rgb": _write_rgb,
    "ir": _write_infrared,
    "depth": _write_depth,
    "skeleton": _write_skeleton,
    "skeleton-npy": _write_skeleton_array,
}
