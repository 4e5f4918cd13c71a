"""A video's packet table: when each frame is shown, and which decoder can be trusted to find it.

Reading all packets without decoding them costs about a millisecond per hundred frames and tells what random
access needs. decord addresses frames by their number; with a re-ordered stream whose key frames are followed
by frames shown before them (open groups: MPEG-4 and MPEG-2 with B-frames, many HEVC files), in MPEG transport
streams and in cut files its numbers and the frames drift apart silently: frame 7 of such an AVI comes back as
frame 0. The table finds those files, and they are decoded by timestamp instead.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Containers with an index that seeks land by (the tests hold every kind against sequential decoding).
INDEXED_CONTAINERS = {"mov", "mp4", "matroska", "webm", "avi"}


@dataclass(frozen=True)
class PacketTable:
    """The frames of a video stream in the order in which they are shown.

    Attributes:
        keys: (n,) int64, what identifies each frame: its presentation timestamp in the stream's ticks where
            every packet has a different one, else its number.
        times_seconds: (n,) float64 ascending, the first is 0.
        key_frames: Ascending ``keys`` at which decoding can begin.
        by_timestamp: ``keys`` are timestamps (else numbers).
        seekable: Decoding can begin at a key frame; else only at the beginning (MPEG streams, where packets
            found after a seek carry other timestamps than before it).
        numbered: Frame numbers are safe to seek by (decord).
        declared: Frames that the header declares; those found where it declares none (Matroska, MPEG).
        fps: Average rate.
        width: Pixels as stored.
        height: Pixels as stored.
    """

    keys: np.ndarray
    times_seconds: np.ndarray
    key_frames: np.ndarray
    by_timestamp: bool
    seekable: bool
    numbered: bool
    declared: int
    fps: float
    width: int
    height: int


def packet_table(container: Any, stream: Any) -> PacketTable:
    """Read the table of a PyAV ``stream``; leaves the container at its end.

    Raises:
        av.error.FFmpegError: If the container breaks before the first packet.
    """
    packets = _packets(container, stream)
    stamps = [stamp for stamp, _, _ in packets if stamp is not None]
    by_timestamp = len(set(stamps)) == len(packets)
    fps = float(stream.average_rate or stream.guessed_rate or 30.0)
    if by_timestamp:
        keys = np.array(sorted(stamps), np.int64)
        times = (keys - keys[:1]) * float(stream.time_base)
        key_frames = np.array(
            sorted({stamp for stamp, is_key, _ in packets if is_key and stamp is not None}), np.int64
        )
    else:
        keys = np.arange(len(packets))
        times = keys / fps
        key_frames = keys[:1]
    seekable = by_timestamp and bool(INDEXED_CONTAINERS & set(container.format.name.split(",")))
    numbered = seekable and _is_numbered(stream, packets)
    declared = stream.frames or len(packets)
    context = stream.codec_context
    return PacketTable(
        keys,
        times,
        key_frames,
        by_timestamp,
        seekable,
        numbered,
        declared,
        fps,
        context.width,
        context.height,
    )


def _packets(container: Any, stream: Any) -> list[tuple[int | None, bool, bool]]:
    """(timestamp, key frame, corrupt) of every packet that shows a frame, in the order of the file."""
    import av

    rows: list[tuple[int | None, bool, bool]] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                rows.append((packet.pts, packet.is_keyframe, packet.is_corrupt))
    except av.error.FFmpegError:
        if not rows:
            raise
    return rows


def _is_numbered(stream: Any, packets: list[tuple[Any, bool, bool]]) -> bool:
    whole = stream.frames in (0, len(packets)) and not any(corrupt for _, _, corrupt in packets)
    return bool(whole and packets and packets[0][1] and _groups_are_closed(packets))


def _groups_are_closed(packets: list[tuple[Any, bool, bool]]) -> bool:
    """No frame is stored after a key frame but shown before it."""
    latest_key = packets[0][0]
    for stamp, is_key, _ in packets:
        if stamp < latest_key:
            return False
        if is_key:
            latest_key = stamp
    return True
