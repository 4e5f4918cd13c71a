"""Masked modelling of stored skeleton sequences: some frames of a clip are shown, the others predicted.

The task is TAHAR's "casmae" (Lerch et al., WACV workshops 2024, as github.com/Cappl1/CMVRA carries it): the
encoder sees CLS and the visible frames at their true places, a decoder with mask tokens elsewhere attends to
the encoder's output and predicts all poses. Of its other tasks, "smae" loses the frames' places, and
predicting the next pose from the last one ("tafar") is nearly solved by repeating it. Differences: the error
counts on hidden frames only; the encoder's CLS token, which is what is extracted, is among what the decoder
attends to; clips keep their length (a batch is as long as its longest clip) instead of being padded to 90.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from align.recipe import RecipeError
from align.train import TrainingError
from store.errors import FrameBankError

if TYPE_CHECKING:
    from store.bank import Bank
    from store.selection import Selection

ENCODER, FIELD = "poses", "tokens"
FEWEST_FRAMES = 2  # of a batch: one to show, one to hide

# (frames (B, T, V * 3), places (B, 1 + K)) -> (B, T, V * 3): all frames from those at the places.
Reconstruct = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Sequences:
    """Clips of poses in memory.

    Args:
        frames: Of each clip (T, V * 3) float32, those in which a body is seen.
        selection: Where they come from.
    """

    frames: list[Tensor]
    selection: "Selection"

    def __len__(self) -> int:
        return len(self.frames)


def load_sequences(
    bank: "Bank", dataset: str, protocol: str | None, part: str | None, where: str | None, most_frames: int
) -> Sequences:
    """The stored poses of a part's clips; clips of more than ``most_frames`` are thinned out evenly.

    Raises:
        RecipeError: If the bank has no poses of the dataset; with the command that stores them.
    """
    try:
        selection = bank.select(
            dataset, "skeleton", encoder=ENCODER, field=FIELD, where=where, protocol=protocol, part=part
        )
    except FrameBankError as error:
        raise RecipeError(
            f"{error}; masked tokens are read from stored poses: python -m extract --dataset {dataset} "
            f"--modality skeleton --encoder {ENCODER} --bank {bank.path}"
        ) from error
    values, offsets = selection.materialise("none")
    clips = np.split(np.asarray(values, np.float32).reshape(len(values), -1), offsets[1:-1])
    return Sequences([_seen(clip, most_frames) for clip in clips], selection)


def _seen(clip: np.ndarray, most_frames: int) -> Tensor:
    """The frames that show a body (all-zero ones don't), at most so many."""
    clip = clip[clip.any(1)]
    if len(clip) > most_frames:
        clip = clip[np.linspace(0, len(clip) - 1, most_frames).round().astype(int)]
    return torch.from_numpy(np.ascontiguousarray(clip))


@dataclass
class PoseBatch:
    """Clips of different lengths; each repeats its last frame up to the longest.

    Args:
        frames: (B, T, V * 3).
        real: (B, T), True where a frame is the clip's own.
    """

    frames: Tensor
    real: Tensor

    def __len__(self) -> int:
        return len(self.frames)


@dataclass
class PoseTask:
    """Hidden frames predicted from visible ones; a :class:`align.pretraining.MaskedTask`.

    Errors are squared, over hidden frames, in units of the training poses' variance: ``mean`` is that of
    guessing the mean training pose (about 1), ``interpolated`` that of drawing straight lines between the
    visible frames, which a network has to beat to be of use.

    Args:
        model: On its device.
        sequences: All clips.
        training: Numbers of those that mean and variance are taken of.
        share: Of the frames, hidden.
        reconstruct: The network's guess.
        mirrored: (V,) the joint that takes each one's place when left and right are swapped.
        seed: Of mirroring.
    """

    model: nn.Module
    sequences: Sequences
    training: np.ndarray
    share: float
    reconstruct: Reconstruct
    mirrored: Sequence[int]
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TrainingError(
                f"align.mae: --mask {self.share} of the frames; accepted is a share between 0 and 1"
            )
        frames = torch.cat([self.sequences.frames[clip] for clip in self.training]).double()
        self.device = next(self.model.parameters()).device
        self.mean = frames.mean(0).float().to(self.device)
        self.variance = frames.var(0, correction=0).mean().item()

    def batches(self, chunks: Sequence[np.ndarray], view: int) -> Iterator[PoseBatch]:
        """For each chunk of clip numbers a batch; in views other than 0 half of the clips are mirrored."""
        for chunk in chunks:
            yield self._batch([self._clip(int(clip), view) for clip in chunk])

    def _clip(self, clip: int, view: int) -> Tensor:
        frames = self.sequences.frames[clip]
        if view and np.random.default_rng([self.seed, view, clip]).random() < 0.5:
            joints = frames.unflatten(1, (-1, 3))[:, list(self.mirrored)]
            return (joints * torch.tensor([-1.0, 1.0, 1.0])).flatten(1)
        return frames

    def _batch(self, clips: Sequence[Tensor]) -> PoseBatch:
        length = max(FEWEST_FRAMES, *map(len, clips))
        places = [torch.arange(length).clamp(max=len(clip) - 1) for clip in clips]
        frames = torch.stack([clip[place] for clip, place in zip(clips, places, strict=True)])
        real = torch.arange(length) < torch.tensor([len(clip) for clip in clips])[:, None]
        return PoseBatch(frames.to(self.device), real.to(self.device))

    def errors(self, batch: PoseBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """See the class; means over the batch's hidden frames."""
        clips, length = batch.real.shape
        places = visible_places(clips, length, self.share, generator).to(self.device)
        hidden = batch.real.clone().scatter_(1, places[:, 1:] - 1, False)
        guesses = {"loss": self.reconstruct(batch.frames, places).float()}
        guesses["mean"] = self.mean.expand_as(batch.frames)
        if not self.model.training:
            guesses["interpolated"] = interpolated(batch.frames, places[:, 1:] - 1)
        return {name: self._error(guess, batch.frames, hidden) for name, guess in guesses.items()}

    def _error(self, guess: Tensor, frames: Tensor, hidden: Tensor) -> Tensor:
        squares = (guess - frames).square().mean(-1) * hidden
        return squares.sum() / hidden.sum().clamp(min=1) / self.variance


def visible_places(clips: int, frames: int, share: float, generator: torch.Generator) -> Tensor:
    """Which frames are shown: (B, 1 + K) int64, 0 for CLS, then 1 + frame, ascending, drawn evenly.

    Args:
        clips: B.
        frames: T, at least 2.
        share: Of the frames, hidden: round(share * T), but at least one, and at least one is shown.
        generator: On the CPU.
    """
    hidden = min(max(round(share * frames), 1), frames - 1)
    order = torch.rand(clips, frames, generator=generator).argsort(1)
    shown = order[:, hidden:].sort(1).values + 1
    return nn.functional.pad(shown, (1, 0))


def interpolated(frames: Tensor, shown: Tensor) -> Tensor:
    """Straight lines between the frames shown, which are held before the first and after the last.

    Args:
        frames: (B, T, D).
        shown: (B, K) their numbers, ascending.

    Returns:
        (B, T, D).
    """
    times = torch.arange(frames.shape[1], device=frames.device).expand(len(frames), -1).contiguous()
    after = torch.searchsorted(shown.contiguous(), times)
    before = (torch.searchsorted(shown.contiguous(), times, right=True) - 1).clamp(min=0)
    ends = [shown.gather(1, place.clamp(max=shown.shape[1] - 1)) for place in (before, after)]
    start, stop = (_pick(frames, end) for end in ends)
    weight = ((times - ends[0]) / (ends[1] - ends[0]).clamp(min=1)).clamp(0, 1)[..., None]
    return start + weight * (stop - start)


def _pick(values: Tensor, rows: Tensor) -> Any:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
