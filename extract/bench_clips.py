"""The clips that `python -m extract.bench` measures with: H.264, moving, and a listing of them."""

import csv
import shutil
from pathlib import Path

import av
import numpy as np
import yaml
from PIL import Image

DATASET = "bench"
WIDTH, HEIGHT, FPS = 640, 480, 30
DISTINCT = 20  # videos that are really encoded; the other clips are copies of their files


def write_clips(folder: Path, clips: int, seconds: float) -> Path:
    """Write ``clips`` videos, their listing and a dataset's YAML into ``folder``; returns the YAML's path."""
    names = [f"clip-{number:05d}.mp4" for number in range(clips)]
    for number, name in enumerate(names):
        if number < DISTINCT:
            _write_video(folder / name, round(seconds * FPS), np.random.default_rng(number))
        else:
            shutil.copyfile(folder / names[number % DISTINCT], folder / name)
    with open(folder / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([["clip_id", "rgb"], *([name[:-4], name] for name in names)])
    path = folder / f"{DATASET}.yaml"
    path.write_text(yaml.safe_dump({"adapter": "listing", "root": str(folder), "modalities": {}}))
    return path


def _write_video(path: Path, frames: int, rng: np.random.Generator) -> None:
    """A camera that pans over a scene in which somebody moves, with a sensor's noise."""
    scene, person = _texture(rng, 2 * HEIGHT, 2 * WIDTH), _texture(rng, 240, 120)
    noise = rng.normal(0, 4, (HEIGHT, 2 * WIDTH, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "20"}
        for k in range(frames):
            pan, shift = 2 * k % WIDTH, int(rng.integers(WIDTH))
            picture = scene[k % HEIGHT :][:HEIGHT, pan : pan + WIDTH] + noise[:, shift : shift + WIDTH]
            top, left = int(120 + 60 * np.sin(k / 7)), int(260 + 200 * np.sin(k / 19))
            picture[top : top + 240, left : left + 120] = person
            image = picture.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colours with structure at all scales, (height, width, 3) float."""
    total = np.full((height, width, 3), 128.0)
    for cell, weight in ((120, 0.5), (30, 0.35), (6, 0.25)):
        small = rng.integers(0, 256, (max(2, height // cell), max(2, width // cell), 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += weight * (np.asarray(large, np.float64) - 128)
    return total
