"""CMVRA's classifiers: taken out of its checkpoints strictly, and applied to stored features as it does."""

import json

import golden_fixtures
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from evaluate.classify import classify
from evaluate.fusion_cmvra import FusionHeads
from evaluate.import_cmvra import import_cmvra, load_classifiers, read_checkpoint
from evaluate.source import EvaluateError
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

CLASSES, WIDTH, CLIPS = 4, 16, 30
MODALITIES = ("rgb", "ir", "ceiling")


def save(path, heads: dict[str, torch.Tensor], **beside) -> None:
    """As CMVRA's trainer saves a model: everything wrapped twice in DataParallel."""
    state = {f"module.{key}": value for key, value in heads.items()}
    for name in MODALITIES:
        state[f"module.modalities_encoders.{name}.module.conv.weight"] = torch.ones(2)
    content = {"epoch": 9, "model_state_dict": state, "optimizer_state_dict": {"state": {}}, **beside}
    torch.save({"best_val_loss": np.float64(0.25), "scheduler_state_dict": {"last_epoch": 3}} | content, path)


@pytest.fixture(scope="module")
def heads() -> FusionHeads:
    torch.manual_seed(1)
    return FusionHeads(MODALITIES, CLASSES, WIDTH).eval()


@pytest.fixture(scope="module")
def bank(tmp_path_factory, heads):
    """Random embeddings of three cameras and of RGB, which four clips lack; classifiers imported."""
    folder = tmp_path_factory.mktemp("classify")
    save(folder / "lep.pth", heads.state_dict())
    facts, _ = read_checkpoint(folder / "lep.pth")
    bank, rng = Bank.open(folder / "bank", create=True), np.random.default_rng(0)
    ids = [f"c{number:02d}" for number in range(CLIPS)]
    bank.register(
        "cars",
        clips=pa.table({"clip_id": ids, "label": (np.arange(CLIPS) % CLASSES).astype(np.int32)}),
        splits=pa.table({"protocol": ["split-0"] * CLIPS, "clip_id": ids, "part": ["test"] * CLIPS}),
    )
    for name in ("rgb", "ir", "ir.ceiling", "ir.mirror"):
        weights = f"{facts.digest}:{name}" if name != "ir.mirror" else "another"
        spec = FeatureSpec("toy", {"name": name, "weights": weights})
        with bank.writer("cars", name, spec, [FieldSpec("embedding", 1, WIDTH)]) as writer:
            for clip in ids[4:] if name == "rgb" else ids:
                writer.add(clip, 0, {"embedding": rng.normal(size=(1, 1, WIDTH))}, np.zeros(1))
    assert import_cmvra(str(folder / "lep.pth"), str(bank.path)) == 0
    return bank


def vectors(bank, modality) -> tuple[list[str], np.ndarray]:
    selection = bank.select("cars", modality, protocol="split-0", part="test")
    return selection.items.tolist(), selection.materialise("mean").reshape(len(selection), -1)


def scores(bank) -> dict[tuple[str, str], dict]:
    """(modality, classifier or fusion) -> the accuracy's row of the newest classification."""
    query = """
        SELECT value, n, detail::VARCHAR AS detail FROM metrics
        WHERE name = 'classify/accuracy' AND run_id = (
            SELECT max(run_id) FROM runs WHERE command = 'evaluate classify' AND status = 'done')
    """
    rows = [row | {"detail": json.loads(row["detail"])} for row in bank.sql(query).to_pylist()]
    return {(row["detail"]["modality"], row["detail"].get("learn_from", "fused")): row for row in rows}


# Out of the file -----------------------------------------------------------------------------------------


def test_the_manifest_s_heads_are_read_strictly(tmp_path):
    """Keys and shapes of the original's model for NTU60."""
    manifest = golden_fixtures.manifest("cmvra_multimodality_heads_ntu60_512")
    save(tmp_path / "ntu.pth", {key: torch.randn(shape) for key, shape in manifest.items()})
    facts, tensors = read_checkpoint(tmp_path / "ntu.pth")
    assert {key: list(value.shape) for key, value in tensors.items()} == manifest
    assert (facts.classes, facts.width, facts.fusion) == (60, 512, True)
    assert facts.classifiers == ["rgb", "ir", "depth", "skeleton"]
    assert facts.encoders == dict.fromkeys(MODALITIES, 1) and (facts.epoch, facts.validation_loss) == (
        9,
        0.25,
    )


def test_what_was_imported_is_what_the_file_held(bank, heads):
    facts, tensors = load_classifiers(bank, "latest")
    assert facts.classifiers == list(MODALITIES)
    assert all(torch.equal(tensors[key], value) for key, value in heads.state_dict().items())
    run_id = bank.sql("SELECT run_id FROM runs WHERE command = 'evaluate import-cmvra'")["run_id"][0].as_py()
    for name in (f"run:{run_id}", f"run:{run_id[:-2]}", str(bank.path / "runs" / run_id)):
        assert load_classifiers(bank, name)[0] == facts
    assert load_file(bank.path / "runs" / run_id / "classifiers.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("ir_classifier.bias"), r"missing \(1\): ir_classifier.bias"),
        (lambda state: state.update(extra=torch.ones(1)), r"unexpected \(1\): extra"),
        (
            lambda state: state.update({"ir_classifier.weight": torch.ones(3, WIDTH)}),
            r"misshapen \(1\): ir_classifier.weight \(3, 16\) instead of \(4, 16\)",
        ),
        (lambda state: state.pop("attention.out_proj.bias"), r"missing \(1\): attention.out_proj.bias"),
        (
            lambda state: state.update({"rgb_classifier.bias": torch.full((CLASSES,), float("nan"))}),
            r"not finite \(1\): rgb_classifier.bias",
        ),
        (lambda state: state.clear(), r"no classifiers in it; its encoders \(ceiling, ir, rgb\)"),
    ],
)
def test_what_is_not_the_original_s_model_is_refused_with_every_key(tmp_path, heads, change, match):
    state = dict(heads.state_dict())
    change(state)
    save(tmp_path / "bad.pth", state)
    with pytest.raises(EvaluateError, match=match):
        read_checkpoint(tmp_path / "bad.pth")


def test_classifiers_without_a_fusion_are_fine(tmp_path, heads):
    """CMVRA's older probes had none."""
    state = {key: value for key, value in heads.state_dict().items() if key[:5] not in ("atten", "final")}
    save(tmp_path / "old.pth", state)
    facts, tensors = read_checkpoint(tmp_path / "old.pth")
    assert not facts.fusion and tensors.keys() == state.keys()


class Runs:
    """Would touch a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, heads):
    save(tmp_path / "evil.pth", heads.state_dict(), config=Runs(tmp_path / "ran"))
    with pytest.raises(EvaluateError, match="no checkpoint that loads safely"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "match"), [({"a": 1}, "has no 'model_state_dict', but a"), ([1], "a list")]
)
def test_other_files_are_refused(tmp_path, content, match):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(EvaluateError, match=match):
        read_checkpoint(tmp_path / "other.pth")


# Applied -------------------------------------------------------------------------------------------------


def test_each_modality_is_scored_by_its_own_classifier_as_it_stands(bank, heads, capsys):
    """Un-normalised vectors by the file's weights, in numpy; a view without its own takes its kind's."""
    classify(str(bank.path))
    state, found = {key: value.numpy() for key, value in heads.state_dict().items()}, scores(bank)
    own = {"rgb": "rgb", "ir": "ir", "ir.ceiling": "ceiling", "ir.mirror": "ir"}
    for modality, name in own.items():
        items, values = vectors(bank, modality)
        guesses = (values @ state[f"{name}_classifier.weight"].T + state[f"{name}_classifier.bias"]).argmax(1)
        labels = np.array([int(item[1:]) % CLASSES for item in items])
        row = found[modality, name]
        assert row["value"] == pytest.approx((guesses == labels).mean()) and row["n"] == len(items)
        assert row["detail"]["same_file"] == (modality != "ir.mirror")
    assert "OTHER FILE" in capsys.readouterr().out


def test_the_fusion_sees_zeros_for_what_is_absent(bank, heads):
    classify(str(bank.path))
    found, order = scores(bank), ("rgb", "ir", "ir.ceiling")
    tables = {name: dict(zip(*vectors(bank, name), strict=True)) for name in order}
    for names in (("rgb",), ("rgb", "ir.ceiling"), ("rgb", "ir", "ir.ceiling")):
        clips = sorted({clip for name in names for clip in tables[name]})
        tokens = np.zeros((len(clips), 3, WIDTH), np.float32)
        for place, name in enumerate(tables):
            for row, clip in enumerate(clips):
                if name in names and clip in tables[name]:
                    tokens[row, place] = tables[name][clip]
        with torch.no_grad():
            guesses = heads(torch.from_numpy(tokens)).argmax(1).numpy()
        hits = guesses == np.array([int(clip[1:]) % CLASSES for clip in clips])
        row = found[" + ".join(names), "fused"]
        assert row["value"] == pytest.approx(hits.mean()) and row["n"] == len(clips)
    assert sum(kind == "fused" for _, kind in found) == 7


def test_a_classifier_can_be_copied_to_another_camera(bank):
    classify(str(bank.path), modalities="ir.ceiling", classifier="ir")
    assert list(scores(bank)) == [("ir.ceiling", "ir")]


def test_refusals_say_what_is_accepted(bank, tmp_path, heads):
    with pytest.raises(EvaluateError, match="accepted: rgb, ir, ceiling"):
        classify(str(bank.path), classifier="depth")
    with pytest.raises(EvaluateError, match="no imported classifiers: run:nothing; there are: "):
        classify(str(bank.path), classifiers="run:nothing")
    many = FusionHeads(MODALITIES, 60, WIDTH)
    save(tmp_path / "many.pth", many.state_dict())
    import_cmvra(str(tmp_path / "many.pth"), str(bank.path))
    with pytest.raises(EvaluateError, match="tell 60 classes apart, cars has 4"):
        classify(str(bank.path))
