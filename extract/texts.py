"""Texts -> embeddings: every unique text of the bank that lacks one, once, whichever dataset it came with."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from encoders.errors import WeightsError
from encoders.protocols import TextEncoder
from extract.progress import Progress
from extract.task import Limits, Outcome
from extract.writing import WriterThread
from store.bank import Bank
from store.runs import Run
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

_CHUNK_TEXTS = 256  # sorted by length, so that each chunk fills few padded lengths


@dataclass(frozen=True)
class TextTask:
    """The bank's texts and the encoder that they go through."""

    encoder: TextEncoder
    spec: FeatureSpec
    device: str = "cpu"
    where: str | None = None

    @property
    def field(self) -> FieldSpec:
        """The one field that a text encoder writes."""
        one = self.encoder.fields[self.encoder.default_fields[0]]
        return FieldSpec(one.name, one.tokens, one.dim)


def plan_texts(bank: Bank, task: TextTask) -> list[tuple[str, str]]:
    """(text_id, text) of the texts that are not encoded, short ones first."""
    rows = bank.plan(TEXTS, TEXT, task.spec, (task.field.name,), where=task.where)
    pairs = zip(rows["item_id"].to_pylist(), rows["text"].to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (len(pair[1]), pair[1]))


def extract_texts(
    bank: Bank,
    task: TextTask,
    wanted: list[tuple[str, str]],
    run: Run,
    limits: Limits,
    stop: Callable[[], str | None] = lambda: None,
) -> Outcome:
    """Encode the texts that :func:`plan_texts` listed; see :func:`extract.pipeline.extract_clips`."""
    outcome, started, seconds = Outcome(planned=len(wanted)), time.monotonic(), 0.0
    with (
        bank.writer(TEXTS, TEXT, task.spec, [task.field], **limits.writer_options()) as writer,
        Progress(f"texts {task.spec.name}", len(wanted), "texts") as progress,
        WriterThread(writer) as out,
    ):
        for start in range(0, len(wanted), _CHUNK_TEXTS):
            begun = time.perf_counter()
            _encode(task, wanted[start : start + _CHUNK_TEXTS], out)
            seconds += time.perf_counter() - begun
            progress.update(out.finished, out.failed, {"encode": seconds, "write": out.seconds})
            progress.show()
            outcome.stopped = stop()
            if outcome.stopped:
                break
        out.drain()
        progress.update(out.finished, out.failed, {"encode": seconds, "write": out.seconds})
    outcome.added, outcome.failed, outcome.seconds = out.added, out.failed, time.monotonic() - started
    outcome.commonest_error = out.commonest_error() if out.failed else None
    detail = {"dataset": TEXTS, "modality": TEXT, "feature_set": task.spec.name}
    values = {"clips": out.added, "failed": out.failed, "bytes": out.nbytes, "encode_seconds": seconds}
    for name, value in values.items():
        run.metric(f"extract/{name}", value, n=out.added, low=None, high=None, **detail)
    return outcome


def _encode(task: TextTask, chunk: list[tuple[str, str]], out: WriterThread) -> None:
    """Encode a chunk; if that fails, each text alone, so that one bad text costs only itself."""
    for pairs, features, error in _attempts(task, chunk):
        for row, (text_id, _) in enumerate(pairs):
            if features is None:
                out.fail(text_id, "encode", error, None)
            else:
                values = features[row].reshape(1, 1, -1).numpy()
                out.add(text_id, 0, {task.field.name: values}, [0.0], None)


def _attempts(
    task: TextTask, pairs: list[tuple[str, str]]
) -> Iterator[tuple[list[tuple[str, str]], torch.Tensor | None, str]]:
    bf16 = task.spec.precision == "bf16"
    try:
        with torch.inference_mode(), torch.autocast(torch.device(task.device).type, torch.bfloat16, bf16):
            features = task.encoder.encode_text([text for _, text in pairs]).float().cpu()
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001 - recorded, under the texts that it hits
        if len(pairs) == 1:
            yield pairs, None, f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            for pair in pairs:
                yield from _attempts(task, [pair])
    else:
        yield pairs, features, ""
