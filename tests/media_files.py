"""Small media files that the tests write: videos whose frame k has a known brightness, sounds, depth
folders."""

import struct
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 3  # brightness of frame k is k * STEP: up to 85 frames


def write_video(path, frames=60, fps=30, codec="mpeg4", gop=12, size=(64, 48), pattern=None, **options):
    """A video whose frame k has brightness k * STEP (or shows ``pattern(k)`` (H, W, 3) uint8)."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.gop_size = width, height, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 8_000_000  # brightness must survive
        stream.options = {name: str(value) for name, value in options.items()}
        for k in range(frames):
            image = np.full((height, width, 3), k * STEP, np.uint8) if pattern is None else pattern(k)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return Path(path)


def frame_numbers(values: np.ndarray) -> list[int]:
    """The k of each frame of `write_video` (T, H, W, 3), from its brightness."""
    return np.rint(values.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def noise(k: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A picture that compresses badly, so that the file is large enough to be cut in the middle."""
    return np.random.default_rng(k).integers(0, 255, (height, width, 3), dtype=np.uint8)


def cut(source, target, fraction: float) -> Path:
    """The first ``fraction`` of a file's bytes."""
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: int(len(content) * fraction)])
    return Path(target)


def set_mp4_matrix(path, matrix: tuple[int, ...]) -> None:
    """Overwrite the display matrix of the first track (nine integers in 16.16, as phones write them)."""
    content = bytearray(Path(path).read_bytes())
    box = content.find(b"tkhd")
    offset = box + 8 + (20 if content[box + 4] == 0 else 32) + 16
    content[offset : offset + 36] = struct.pack(">9i", *matrix)
    Path(path).write_bytes(content)


def write_sound(path, samples: np.ndarray, rate: int = 16000, codec: str = "pcm_s16le") -> Path:
    """A sound file of (channels, samples) float in [-1, 1]."""
    layout = "mono" if len(samples) == 1 else "stereo"
    interleaved = (samples.T.reshape(1, -1) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(interleaved), format="s16", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout=layout, rate=rate, frame_size=stream.frame_size or 0
        )
        pieces = [*resampler.resample(frame), *resampler.resample(None)]
        for packet in [p for piece in pieces for p in stream.encode(piece)] + list(stream.encode()):
            container.mux(packet)
    return Path(path)


def write_depth_folder(folder, frames: int = 6, size=(32, 24)) -> Path:
    """A folder of 16-bit depth maps as NTU names them; frame k (0-based) is 1000 + k millimetres deep."""
    Path(folder).mkdir(parents=True)
    for k in range(frames):
        depth = np.full(size[::-1], 1000 + k, np.uint16)
        depth[0] = 0
        Image.fromarray(depth).save(Path(folder) / f"MDepth-{k + 1:08d}.png")
    return Path(folder)


def write_ntu_skeleton(path, frames: list[list[tuple[str, np.ndarray]]], declared: int | None = None) -> Path:
    """An NTU ``.skeleton`` text file of frames of (tracking number, joints (J, 3))."""
    lines = [str(len(frames) if declared is None else declared)]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for number, joints in bodies:
            lines += [f"{number} 0 1 1 1 1 0 0.1 -0.2 2", str(len(joints))]
            lines += [" ".join(f"{v:.7g}" for v in joint) + " 250 200 1000 500 0 0 0 1 2" for joint in joints]
    Path(path).write_text("\n".join(lines) + "\n")
    return Path(path)
