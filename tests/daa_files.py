"""A small look-alike of Drive&Act: real videos of each camera at its own rate, 3-D poses, CSVs in frames.

What a video shows tells when it was: two digits of the moment, as the brightness of the frame's upper and
lower half. The cameras start at different moments, as real ones do, and count their own frames.
"""

import csv
from pathlib import Path

import numpy as np
from media_files import write_video

from extract.readers.openpose_csv import OPENPOSE_JOINTS

TICKS = 150  # a second, so that every camera's frames come at a whole number of them
BASE, DARK, HIGH_STEP, LOW_STEP = 32, 20, 15, 7  # of the two digits, and how much brighter each of them is
EARLIEST = -0.2  # seconds of the drive: tick 0
SECONDS = 2.8  # of every recording
SPLITS = {  # written out, not taken from the code under test
    0: {"val": {14, 15}, "test": {5, 11, 13}},
    1: {"val": {3, 8}, "test": {9, 10, 12}},
    2: {"val": {1, 2}, "test": {4, 6, 7}},
}
# Folder of the videos -> name in file names, frames a second, seconds by which it started before the drive.
CAMERAS = {
    "kinect_color": ("kinect_color", 15, 0.0),
    "kinect_ir": ("kinect_ir", 30, 0.0),
    "kinect_depth_mp4": ("kinect_depth", 30, 0.0),
    "inner_mirror": ("ids_1", 30, 0.1),
    "ceiling": ("ids_3", 25, 0.2),  # a rate that only its header tells
}
DRIVES = {1: "run1b_2018-05-29-14-02-47", 5: "run1_2018-05-22-15-32-37", 14: "run2_2018-06-05-10-11-12"}
SEARCHING = "looking_or_moving_around (e.g. searching)"
# annotation, chunk, activity, seconds of the drive; multiples of 0.2 s are whole frames of every camera
CLIPS = (
    (0, 0, "closing_door_outside", 0.2, 1.0),
    (1, 0, SEARCHING, 1.0, 1.8),
    (1, 1, SEARCHING, 1.8, 2.4),
)
HEADER = ["participant_id", "file_id", "annotation_id", "frame_start", "frame_end", "activity", "chunk_id"]


def part(split, participant):
    return next((name for name, who in SPLITS[split].items() if participant in who), "train")


def frames(camera, start, end):
    """First and last frame (inclusive) of a camera that show the drive from ``start`` to ``end``."""
    _, fps, early = CAMERAS[camera]
    return round((start + early) * fps), round((end + early) * fps) - 1


def row(camera, participant, clip, activity=None):
    annotation, chunk, name, start, end = clip
    file_id = f"vp{participant}/{DRIVES[participant]}.{CAMERAS[camera][0]}"
    return [participant, file_id, annotation, *frames(camera, start, end), activity or name, chunk]


def write_annotations(root, camera, folder=None, clips=CLIPS, drives=DRIVES):
    """The nine CSVs of a camera."""
    target = Path(root) / "activities_3s" / (folder or camera)
    target.mkdir(parents=True)
    for split in SPLITS:
        for name in ("train", "val", "test"):
            with (target / f"midlevel.chunks_90.split_{split}.{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(HEADER)
                for participant in drives:
                    if part(split, participant) == name:
                        writer.writerows(row(camera, participant, clip) for clip in clips)


def write_camera(root, camera, drives=DRIVES):
    """The videos of a camera."""
    stream, fps, early = CAMERAS[camera]
    for participant in drives:
        folder = Path(root) / camera / f"vp{participant}"
        folder.mkdir(parents=True)
        path = folder / f"{DRIVES[participant]}.{stream}.mp4"
        write_video(path, round((SECONDS + early) * fps), fps, pattern=lambda k: grey(k / fps - early), g=1)


def grey(second):
    high, low = divmod(round((second - EARLIEST) * TICKS), BASE)
    frame = np.full((48, 64, 3), DARK + HIGH_STEP * high, np.uint8)
    frame[24:] = DARK + LOW_STEP * low
    return frame


def second(values):
    """When in the drive each frame (T, H, W, 3), or (T, 16, 3) patch means in 0..255, was taken."""
    quarter = values.shape[1] // 4
    high, low = (
        values[:, rows].reshape(len(values), -1).mean(1) - DARK
        for rows in (slice(quarter), slice(-quarter, None))
    )
    return (np.rint(high / HIGH_STEP) * BASE + np.rint(low / LOW_STEP)) / TICKS + EARLIEST


def pose(second):
    """26 OpenPose joints (26, 3) of a driver whose nose's x is the second of the drive; no background."""
    joints = np.random.default_rng(1).uniform(0.2, 0.9, (26, 3))
    joints[OPENPOSE_JOINTS.index("background")] = 0
    joints[OPENPOSE_JOINTS.index("nose"), 0] = 1 + second
    return joints


def write_poses(path, poses, first=0, header=None):
    """A CSV of (T, 26, 3) poses, as the release has them, for the frames from ``first`` on."""
    columns = [f"{joint}_{axis}" for joint in OPENPOSE_JOINTS for axis in "xyzp"]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header or ["frame_id", "timestamp", *columns])
        for k, joints in enumerate(poses, first):
            seen = (joints != 0).any(-1, keepdims=True) * 0.9
            writer.writerow([k, f"{1527595367 + k / 30:.6f}", *np.concatenate([joints, seen], -1).ravel()])
    return Path(path)


def write_release(root, cameras=tuple(CAMERAS), drives=DRIVES):
    """Videos, poses (in the inner mirror's frames) and annotations; returns the root."""
    for camera in cameras:
        write_camera(root, camera, drives)
        write_annotations(root, camera, camera.removesuffix("_mp4"), drives=drives)
    _, fps, early = CAMERAS["inner_mirror"]
    for participant in drives:
        path = (
            Path(root) / "openpose_3d" / f"vp{participant}" / f"{DRIVES[participant]}.ids_1.openpose.3d.csv"
        )
        write_poses(path, [pose(k / fps - early) for k in range(round((SECONDS + early) * fps))])
    return Path(root)


def cut_name(camera, participant, clip, suffix=".avi"):
    """How CMVRA's scripts call a clip's file; poses take the colour camera's frames and no activity."""
    annotation, chunk, activity, start, end = clip
    poses = camera == "openpose_3d"
    first, last = frames("kinect_color" if poses else camera, start, end)
    stream = "kinect_color" if poses else CAMERAS[camera][0]
    where = (
        f"{participant}_vp{participant}_{DRIVES[participant]}.{stream}_{first}_{last}_{annotation}_{chunk}"
    )
    return f"{where}.npy" if poses else f"{activity}_{where}{suffix}"


def write_cut(root, cameras, write):
    """``<view>/clips/<part>/`` of all three splits; ``write(path)`` makes a file. Returns the root."""
    for camera in cameras:
        for participant in DRIVES:
            for split in SPLITS:
                folder = Path(root) / camera / "clips" / f"{part(split, participant)}{split or ''}"
                folder.mkdir(parents=True, exist_ok=True)
                for clip in CLIPS:
                    write(folder / cut_name(camera, participant, clip))
    return Path(root)
