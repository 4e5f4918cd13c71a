"""Sound: WAV files and the audio track of any container, as mono samples at one rate."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from extract.readers.media import (
    DamagedMediaError,
    Frames,
    MediaInfo,
    NoFramesError,
    ReadError,
    checked_file,
    printable,
)
from extract.sampling import Sampling, SamplingError

# Codecs with overlapping windows (AAC, MP3, Opus) need the packets before a cut to decode the first after it.
PRE_ROLL_SECONDS = 0.5


class AudioReader:
    """Reads the first audio track; values (samples,) float32 in about [-1, 1].

    Channels are averaged to mono and resampled by libswresample. Options: ``sample_rate`` (16000 Hz).
    Time 0 is the track's first sample. All samples of the span are returned: the encoder cuts its windows.
    """

    revision = 1

    def probe(self, path: str | Path, sample_rate: int = 16000) -> MediaInfo:
        """Samples (at ``sample_rate``) and duration as the container tells them. Raises: ReadError."""
        with _open(path) as container:
            stream = container.streams.audio[0]
            seconds = _duration_seconds(container, stream)
        return MediaInfo(round(seconds * sample_rate), float(sample_rate), None, None, seconds)

    def read(
        self,
        path: str | Path,
        sampling: Sampling | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        sample_rate: int = 16000,
    ) -> Frames:
        """All samples of [start, end); ``sampling`` is not used. A cut file gives what decodes.

        Raises:
            ReadError: If the file is missing, holds no audio track, or nothing of it decodes.
            SamplingError: If the span lies behind the end of the track.
        """
        start = start_seconds or 0.0
        with _open(path) as container:
            declared = round(_duration_seconds(container, container.streams.audio[0]) * sample_rate)
            pieces = list(_pieces(container, start, end_seconds, sample_rate))
        if not pieces and start == 0.0:
            raise NoFramesError(path, "no sample of the audio track decodes", "copy it again")
        values = np.concatenate([piece for _, piece in pieces]) if pieces else np.empty(0, np.float32)
        first = pieces[0][0] if pieces else 0
        values, begun = _cut(values, first, start, end_seconds, sample_rate)
        if not len(values):
            raise SamplingError(
                f"sampling: the clip's span {start_seconds} to {end_seconds} seconds holds no sample of "
                f"{printable(path)}; correct the clip's start and end"
            )
        decoded = first + sum(len(piece) for _, piece in pieces)
        whole = start_seconds is None and end_seconds is None
        return Frames(
            values,
            np.array([begun / sample_rate]),
            float(sample_rate),
            declared or decoded,
            decoded if whole else declared,
        )


def _open(path: str | Path) -> Any:
    try:
        container = av.open(os.fspath(checked_file(path)), metadata_errors="replace")
    except ReadError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise DamagedMediaError(path, f"is no sound or video file ({cause})", "copy it again") from None
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise NoFramesError(path, f"holds no audio track (it holds: {kinds})", "give a file with sound")
    return container


def _duration_seconds(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _pieces(
    container: Any, start: float, end: float | None, sample_rate: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first sample, samples) at ``sample_rate``, from a little before ``start`` on."""
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    origin = float((stream.start_time or 0) * stream.time_base)
    if start > PRE_ROLL_SECONDS:
        container.seek(int((origin + start - PRE_ROLL_SECONDS) / stream.time_base), stream=stream)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)
    position: int | None = None
    for frame in _decoded(container):
        if position is None:
            seconds = 0.0 if frame.pts is None else float(frame.pts * frame.time_base) - origin
            position = max(round(seconds * sample_rate), 0)
        if end is not None and position / sample_rate > end + PRE_ROLL_SECONDS:
            return
        frame.pts = None  # gaps in the timestamps are not filled: samples simply follow each other
        for piece in resampler.resample(frame):
            yield position, piece.to_ndarray()[0]
            position += piece.samples
    if position is not None:
        for piece in resampler.resample(None):
            yield position, piece.to_ndarray()[0]
            position += piece.samples


def _decoded(container: Any) -> Iterator[Any]:
    """Audio frames until the end of the file, past damaged packets."""
    packets = container.demux(audio=0)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except av.error.FFmpegError:
            continue  # a damaged packet; or the container ends here, and so does `packets`
        yield from frames


def _cut(
    values: np.ndarray, first: int, start: float, end: float | None, sample_rate: int
) -> tuple[np.ndarray, int]:
    """The samples of [start, end) and the index of the first of them; ``first`` is the index of values[0]."""
    begin = max(round(start * sample_rate), first)
    stop = first + len(values) if end is None else round(end * sample_rate)
    return values[begin - first : max(stop - first, 0)], begin
