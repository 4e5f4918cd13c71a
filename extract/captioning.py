"""What ``python -m extract.captions`` does with its arguments: the model, what is missing, how it went."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from encoders import base_modality
from extract.command import EXIT_DONE, EXIT_SOME_FAILED, Request, find_dataset, register_dataset
from extract.describing import Describing, Plan
from extract.encode import default_precision, resolve_device
from extract.interrupt import Interruption
from extract.pictures import AtPositions
from extract.readers import load_reader
from extract.resolve import Choices
from extract.task import Outcome
from extract.workers import DecodePool, default_workers
from store.bank import Bank
from store.captions import caption_sources, missing_captions
from store.commit import FeatureSet
from store.errors import FrameBankError
from store.spec import AUTO, FeatureSpec

if TYPE_CHECKING:
    from encoders.llava_next import LlavaNext

PICTURES = ("rgb", "ir")  # modalities whose readers give (T, H, W, 3) uint8
BATCH_FRAMES = {"cpu": 2, "cuda": 8}
SHOWN_FAILURES = 3


class CaptionError(FrameBankError, ValueError):
    """A request that cannot be: what, and what is accepted."""


@dataclass(frozen=True)
class CaptionRequest:
    """The command line, as :func:`extract.captions.captions` documents it."""

    dataset: str | None
    model: str | None
    root: str | None = None
    bank: str = "bank"
    modality: str = "rgb"
    prompt: str | None = None
    positions: str = "1/3,1/2,2/3"
    samples: int = 3
    temperature: float = 0.5
    max_new_tokens: int = 512
    seed: int = 0
    where: str | None = None
    limit: int | None = None
    precision: str = AUTO
    device: str = "auto"
    allow_partial: tuple[str, ...] = ()
    batch_frames: int | None = None
    workers: int | None = None
    timeout_seconds: float = 60.0
    max_failures: float = 0.2


def execute(request: CaptionRequest, pool: DecodePool | None = None) -> int:
    """Carry out a request; returns the exit status.

    Args:
        request: What.
        pool: Decode processes to use; own ones if None.

    Raises:
        FrameBankError, EncoderError: For what is wrong with the request, before anything is described.
    """
    sampling = _checked(request)
    asked = Request(request.dataset, request.modality, request.root, request.bank, Choices())
    adapter, config = find_dataset(asked)
    model = _model(request)
    bank = Bank.open(request.bank, create=True)
    register_dataset(bank, adapter, config, asked)
    owner = _owner(bank, config.name, request, sampling, model)
    wanted = missing_captions(bank.catalog, config.name, request.modality, owner.name, request.where)
    plan = Plan(
        owner,
        wanted.slice(0, request.limit).to_pylist(),
        config.root or config.source.parent,
        sampling,
        request.samples,
        request.seed,
        request.batch_frames or BATCH_FRAMES[model.device.type],
        request.max_failures,
    )
    if not plan.rows:
        print(_nothing_to_do(bank, owner, request.where))
        return EXIT_DONE
    return _run(bank, model, plan, request, pool)


def _run(bank: Bank, model: "LlavaNext", plan: Plan, request: CaptionRequest, pool: DecodePool | None) -> int:
    owner, texts = plan.owner, f"{plan.sampling.frames} frames x {request.samples} texts"
    how = f"{owner.spec.precision} on {model.device}"
    _say(f"{_label(owner)}: {len(plan.rows)} clips to do, {texts} each; {how}")
    model.load(owner.spec.precision)  # type: ignore[arg-type]
    settings = asdict(request) | {"source": owner.name, "spec": owner.spec.as_json()}
    with ExitStack() as stack:
        stopper = stack.enter_context(Interruption())
        if pool is None:
            workers = request.workers or default_workers()
            pool = stack.enter_context(DecodePool(workers, request.timeout_seconds))
        run = stack.enter_context(bank.record_run("extract.captions", settings))
        outcome = Describing(bank, model, plan, run).work(pool, stopper.reason)
    _report(bank, owner, outcome)
    if stopper.number is not None:
        _say(f"{stopper.reason()}: what was done is committed; run the same command again to go on")
        return stopper.exit_code
    if outcome.stopped:
        _say(f"stopped: {outcome.stopped}; most of them: {outcome.commonest_error}")
    return EXIT_SOME_FAILED if outcome.failed or outcome.stopped else EXIT_DONE


def _checked(request: CaptionRequest) -> AtPositions:
    """Which frames. Raises: CaptionError, SamplingError: For what makes no sense."""
    if request.dataset is None or request.model is None:
        raise CaptionError(
            "captions: --dataset NAME and --model FOLDER are needed; the model is a LLaVA-NeXT as "
            "save_pretrained writes it, or its hub id, for example llava-hf/llava-v1.6-mistral-7b-hf"
        )
    if base_modality(request.modality) not in PICTURES:
        raise CaptionError(
            f"captions: --modality {request.modality}; accepted are: {', '.join(PICTURES)}, and views of them"
        )
    least: Mapping[str, float] = {
        **{"samples": 1, "max_new_tokens": 1, "limit": 1, "batch_frames": 1, "workers": 1},
        **{"temperature": 0, "max_failures": 0},
    }
    for name, low in least.items():
        value = getattr(request, name)
        if value is not None and value < low:
            option = name.replace("_", "-")
            raise CaptionError(f"captions: --{option} {value}; at least {low} is accepted")
    if request.timeout_seconds <= 0:
        raise CaptionError(f"captions: --timeout-seconds {request.timeout_seconds}; more than 0 is accepted")
    if request.temperature == 0 and request.samples > 1:
        raise CaptionError(
            f"captions: --temperature 0 gives one text a frame, not --samples {request.samples}; --samples 1"
        )
    return AtPositions.parse_positions(request.positions)


def _model(request: CaptionRequest) -> "LlavaNext":
    from encoders.llava_next import PROMPT, LlavaNext

    assert request.model is not None
    return LlavaNext(
        request.model,
        resolve_device(request.device),
        prompt=request.prompt or PROMPT,
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
        allow_partial=request.allow_partial,
    )


def _owner(
    bank: Bank, dataset: str, request: CaptionRequest, sampling: AtPositions, model: "LlavaNext"
) -> FeatureSet:
    """Whose captions they are: everything that decides the texts, by value; its name is their source.

    Precision ``auto`` is that of the only otherwise equal source that exists, else the device's.
    """
    reading = {
        "modality": request.modality,
        "sampling": sampling.key(),
        "samples": request.samples,
        "seed": request.seed,
        "readers": _reader_revisions(bank, dataset, request.modality),
        "precision": request.precision,
    }
    space = model.space
    spec = FeatureSpec(space["model"], space, reading)
    if spec.precision == AUTO:
        known = set(caption_sources(bank.catalog, dataset)["source"].to_pylist())
        equal = [one for one in ("fp32", "bf16") if spec.with_precision(one).name in known]
        default = default_precision(str(model.device), tolerates_bf16=True)
        spec = spec.with_precision(equal[0] if len(equal) == 1 else default)
    return FeatureSet(dataset, request.modality, spec)


def _reader_revisions(bank: Bank, dataset: str, modality: str) -> dict[str, int]:
    sql = "SELECT DISTINCT reader FROM media WHERE dataset = ? AND modality = ? ORDER BY reader"
    names = bank.sql(sql, [dataset, modality])["reader"].to_pylist()
    if not names:
        raise CaptionError(f"captions: no clip of {dataset} has {modality}; see table coverage")
    return {name: load_reader(name).revision for name in names}


def _nothing_to_do(bank: Bank, owner: FeatureSet, where: str | None) -> str:
    sql = (
        "SELECT count(*) AS n FROM (SELECT * FROM clips WHERE dataset = $dataset) JOIN sources USING"
        f" (dataset, clip_id) WHERE modality = $modality AND ({where or 'true'})"
    )
    clips = bank.sql(sql, {"dataset": owner.dataset, "modality": owner.modality})["n"][0].as_py()
    if not clips:
        return f"nothing to do: no clip of {owner.dataset}/{owner.modality} fits --where {where!r}"
    return f"nothing is missing: all {clips} clips of {_label(owner)} have captions"


def _report(bank: Bank, owner: FeatureSet, outcome: Outcome) -> None:
    parts = [f"{outcome.added} clips captioned"]
    parts += [f"{outcome.failed} failed"] if outcome.failed else []
    left = outcome.planned - outcome.added - outcome.failed
    parts += [f"{left} left"] if left else []
    print(f"{_label(owner)}: {', '.join(parts)} in {timedelta(seconds=round(outcome.seconds))}")
    for note, times in outcome.notes.items():
        _say(f"  note: {times} x {note}")
    if outcome.failed:
        failed = f"dataset = '{owner.dataset}' AND feature_set = '{owner.name}'"
        sql = f"SELECT clip_id, attempts, error FROM failures WHERE {failed} ORDER BY clip_id"
        for row in bank.sql(f"{sql} LIMIT {SHOWN_FAILURES}").to_pylist():
            _say(f"  failed: {row['clip_id']} (attempt {row['attempts']}): {row['error']}")
        _say(f'  all of them: python -m store sql --bank {bank.path} "{sql}"; run again to retry')
    if outcome.added:
        command = f"python -m extract --dataset {owner.dataset} --modality text --bank {bank.path}"
        _say(f"  to encode the texts: {command}")


def _label(owner: FeatureSet) -> str:
    return f"{owner.dataset}/{owner.modality} {owner.name}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
