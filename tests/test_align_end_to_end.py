"""Encoders trained end to end on real depth files: what they see, their gradients, resuming, what is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hub_folders import CASES
from safetensors.torch import load_file
from test_align_distributed import environment, free_port

import align
from align import distributed
from align.alignment import SpaceError
from align.checkpoint import read_state
from align.config import AugmentConfig, LossConfig, ModalityConfig
from align.decoding import ClipStream
from align.end_to_end import EndToEndError, end_to_end, prepare
from align.end_to_end_config import EndToEndConfig, TuneConfig
from align.model import Heads, HeadSpec
from align.pretraining_run import interrupted
from align.run import ResumeError
from align.towers import Towers
from align.tuning_run import COMMAND, go_on, tune
from encoders import load_encoder
from evaluate.leakage import LeakageError
from evaluate.probe import probe
from evaluate.trained import trainings
from extract.command import Request, execute
from extract.datasets.config import parse_modalities
from extract.datasets.synthetic import generate
from extract.resolve import Choices
from extract.workers import DecodePool
from store.bank import Bank

CLIPS, FRAMES = 16, 4
FOLDERS = ("clip-vit-b32", "xclip-b16", "dinov2-b14", "videomae-b-k400", "vjepa2-h")
VIP = {"encoder": "clip-vip-b16", "weights": "random", "options": {"architecture": "tiny"}}
RECIPE = {
    "dataset": "synthetic",
    "modalities": {
        "skeleton": ModalityConfig(field="tokens", reduce="resample:8", head="linear"),
        "depth": ModalityConfig(field="embedding", head="linear"),
    },
    "embedding": 8,
    "seed": 0,
    "micro_batch": 3,
    "workers": 1,
}
LOOP = {"epochs": 2, "batch": 4, "learning_rate": 3e-3, "device": "cpu", "checkpoint_seconds": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("end") / "corpus"
    generate(root, CLIPS, actions=4, size=(64, 48), modalities=("depth", "skeleton"), workers=1)
    return root


@pytest.fixture(scope="module")
def workers():
    with DecodePool(1, timeout_seconds=20) as pool:
        yield pool


@pytest.fixture(autouse=True)
def shared_workers(monkeypatch, workers):
    """Starting decode processes is most of the time that these runs would take."""
    monkeypatch.setattr("extract.workers.DecodePool", lambda *_: nullcontext(workers))


@pytest.fixture(scope="module")
def extracted(corpus, workers) -> Path:
    path = corpus.parent / "bank"
    extract(corpus, path, workers, "depth", None, register_only=True)
    extract(corpus, path, workers, "skeleton", {"encoder": "joints"})
    return path


@pytest.fixture
def bank(extracted, tmp_path) -> Bank:
    shutil.copytree(extracted, tmp_path / "bank")
    return Bank.open(tmp_path / "bank")


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def extract(corpus, path, workers, modality, recipe, weights=None, views=1, register_only=False):
    configured = parse_modalities("test", {modality: recipe}) if recipe else {}
    choices = Choices(
        modalities=configured, weights=weights, precision="fp32", device="cpu", views=views, frames=None
    )
    request = Request("synthetic", modality, str(corpus), str(path), choices, register_only=register_only)
    assert execute(request, workers) == 0


def config(loop=None, **changed) -> EndToEndConfig:
    from align.config import TrainConfig

    wanted = {"tune": {"depth": TuneConfig(**VIP, frames=FRAMES, learning_rate=1e-3)}}
    wanted |= {"train": TrainConfig(**(LOOP | (loop or {})))}
    return EndToEndConfig(**(RECIPE | wanted | changed))


def depth(**changed) -> dict[str, TuneConfig]:
    return {"depth": TuneConfig(**(VIP | {"frames": FRAMES, "learning_rate": 1e-3} | changed))}


def trained(bank: Bank, **changed) -> Path:
    with ExitStack() as stack:
        return tune(bank, prepare(bank, config(**changed), stack))


def curve(directory: Path) -> list[dict]:
    rows = json.loads((directory / "curve.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def ready(bank, stack, **changed):
    """A tuner in training mode and its first batch."""
    tuner = prepare(bank, config(**changed), stack).tuner
    tuner.heads.train()
    return tuner, next(tuner.live.epoch(0))


def gradients(tuner) -> dict[str, torch.Tensor]:
    named = [*tuner.heads.named_parameters(), *tuner.losses.named_parameters()]
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


# Gradients


def test_micro_batches_have_the_gradient_of_the_whole_batch(bank, stack):
    found = []
    for size in (8, 3, 1):
        tuner, batch = ready(bank, stack, micro_batch=size, loop={"batch": 8})
        assert len(batch) == 8
        loss = tuner.gradients(batch)
        found.append((loss, gradients(tuner)))
    (loss, whole), *others = found
    assert any(name.startswith("towers.depth.model.vision_model.encoder") for name in whole)
    for value, cached in others:
        assert value == pytest.approx(loss.item(), abs=1e-6) and cached.keys() == whole.keys()
        largest = max(one.abs().max().item() for one in whole.values())
        off = max((whole[name] - cached[name]).abs().max().item() for name in whole)
        assert off < 1e-6 * max(1.0, largest)


def test_recomputed_activations_change_nothing_but_memory(bank, stack):
    plain, saving = (ready(bank, stack, checkpointing=on) for on in (False, True))
    for tuner, batch in (plain, saving):
        tuner.gradients(batch)
    one, other = gradients(plain[0]), gradients(saving[0])
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_accumulated_batches_are_averaged(bank, stack):
    tuner, _ = ready(bank, stack, accumulate=2)
    assert tuner.epoch_steps == 1 and len(tuner.loader) == 2
    batches = list(tuner.live.epoch(0))
    for place, batch in enumerate(batches):
        tuner.gradients(batch, (0, 0, place), 0.5)
    wanted, tuner.config.clip_norm = gradients(tuner), 0.0
    tuner.optimizer.step = lambda: None
    tuner._update(tuner.live.epoch(0), 2, (0, 0))
    assert all(torch.allclose(value, wanted[name], atol=1e-7) for name, value in gradients(tuner).items())


def test_rates_and_decay_are_per_group(bank, stack):
    tuner, _ = ready(
        bank,
        stack,
        tune=depth(learning_rate=0.5, layer_decay=0.1, weight_decay=0.7),
        loss_learning_rate=9.0,
        losses=[],
    )
    tuner._set_rate(0)
    place = {id(value): name for name, value in tuner.heads.named_parameters()}
    found = {
        place[id(value)]: (group["peak"], group["weight_decay"])
        for group in tuner.optimizer.param_groups
        for value in group["params"]
    }
    model = "towers.depth.model."
    assert found["heads.depth.out.weight"] == (3e-3, 0.05) and found["heads.depth.out.bias"] == (3e-3, 0.0)
    assert found[f"{model}visual_projection.weight"] == (0.5, 0.7)
    assert found[f"{model}vision_model.encoder.layers.1.mlp.fc1.weight"] == (0.5, 0.7)
    assert found[f"{model}vision_model.encoder.layers.0.mlp.fc1.weight"] == pytest.approx((0.05, 0.7))
    assert found[f"{model}vision_model.encoder.layers.0.mlp.fc1.bias"] == pytest.approx((0.05, 0.0))


# What encoders see


def test_pixels_are_those_of_extraction_and_decoded_once(bank, stack, corpus, workers, monkeypatch):
    tuner, batch = ready(bank, stack, train=config().train)
    encoder = load_encoder("clip-vip-b16", "random", modality="depth", architecture="tiny")
    recipe = {"encoder": "clip-vip-b16", "options": {"architecture": "tiny"}, "sampling": {"frames": FRAMES}}
    extract(corpus, bank.path, workers, "depth", recipe, "random")
    stored = bank.select("synthetic", "depth", field="embedding")
    rows = [list(stored.items).index(clip) for clip in tuner.data.clips[batch.clips.numpy()]]
    seen = batch.features["depth"]
    assert seen.values.shape == (4, FRAMES, 1, 32, 32)
    ours = encoder.encode(seen.values)["embedding"][:, 0, 0]
    assert np.allclose(stored.materialise("mean")[rows], ours.numpy(), atol=2e-3)  # float16
    list(tuner.live.epoch(0))
    monkeypatch.setattr(workers, "decode", lambda jobs: (pytest.fail(str(job)) for job in jobs))
    again = [one.features["depth"].values for one in tuner.live.epoch(1)]
    assert len(again) == 2


def test_pixels_are_of_the_view_whose_features_are_beside_them(bank, stack, corpus, workers):
    extract(corpus, bank.path, workers, "skeleton", {"encoder": "joints"}, views=2)
    tuner, _ = ready(bank, stack, views=2)
    track, skeleton = tuner.data.tracks["depth"], tuner.data.tracks["skeleton"]
    clips, feed = np.arange(len(tuner.data)), tuner.feeds["depth"]
    for view in (0, 1):
        rows = track.rows(clips, np.full(len(clips), view / 2))
        assert (rows % 2 == view).all()
        stored = bank.select("synthetic", "skeleton", view=view, items=[tuner.data.clips[3]])
        row = skeleton.rows(clips, np.full(len(clips), view / 2))[3]
        mean = stored.materialise("resample:8")[0].astype(np.float32)
        shown = skeleton.features[row].astype(np.float32)
        assert np.corrcoef(mean[:, :, 3].ravel(), shown[:, :, 3].ravel())[0, 1] > 0.9 or view == 0
        jobs = [feed.job(int(row)) for row in rows]
        assert all((job.crop is None) == (view == 0) for job in jobs)
    kept = bank.sql("SELECT item_id, top, start FROM views WHERE view = 1").to_pylist()
    drawn = {row["item_id"]: row for row in kept}
    job = feed.job(int(track.rows(clips[3:4], np.array([0.5]))[0]))
    wanted = drawn[tuner.data.clips[3]]
    assert (job.crop.top, job.window[0]) == (wanted["top"], wanted["start"])


def test_clips_that_cannot_be_read_lack_the_modality(bank, stack, capsys):
    tuner, _ = ready(bank, stack)
    feed = tuner.feeds["depth"]
    lost = str(tuner.data.clips[2])
    rows = [dict(row) for row in feed.rows]
    place = [row["clip_id"] for row in rows].index(lost)
    rows[place]["path"] += "-missing"
    feed.rows = rows
    feed.stream.kept.clear()
    present = {}
    for batch in tuner.live.epoch(0):
        there = torch.ones(len(batch), 2, dtype=torch.bool) if batch.present is None else batch.present
        present |= {tuner.data.clips[int(c)]: row.tolist() for c, row in zip(batch.clips, there, strict=True)}
        tuner.gradients(batch)
    assert present.pop(lost) == [True, False] and all(all(row) for row in present.values())
    assert f"left out: {lost}: " in capsys.readouterr().err
    feed.stream.kept.clear()
    for row in rows:
        row["path"] += "-missing"
    with pytest.raises(EndToEndError, match=r"of 8 clips cannot be read, more than 20%"):
        list(tuner.live.epoch(1))


def test_texts_are_trained_as_tokens(bank, stack):
    """As CLIP-ViP is fine-tuned: both towers, nothing stored, a learnt temperature, dual softmax."""
    text = {**VIP, "learning_rate": 1e-3}
    joint = ModalityConfig(field="embedding", head="identity")
    changed = {
        "modalities": {"depth": joint, "text": joint},
        "tune": depth() | {"text": TuneConfig(**text)},
        "losses": [LossConfig(options={"learn_temperature": True, "dual_softmax": True})],
        "embedding": 20,
        "micro_batch": 2,
    }
    tuner, batch = ready(bank, stack, **changed)
    assert set(batch.features["text"].values) >= {"input_ids", "attention_mask"}
    assert (batch.texts >= 0).all()
    tuner.gradients(batch)
    found = gradients(tuner)
    for tower in ("depth.model.vision_model", "text.model.text_model"):
        assert any(name.startswith(f"towers.{tower}") for name in found)
    assert found["terms.0.log_scale"] != 0
    directory = trained(bank, loop={"epochs": 1}, **changed)
    kept = load_file(directory / "encoder_text.safetensors")
    assert load_encoder(**_plain(VIP), modality="text").model.state_dict().keys() == kept.keys()


def _plain(given):
    return {"name": given["encoder"], "weights": given["weights"], **given["options"]}


def test_features_are_standardised_by_what_the_encoder_gave_before_training(bank, stack):
    prepared = prepare(bank, config({"average": 0.9}), stack)
    prepared.tuner.measure({"depth": "dim"})
    assert torch.equal(
        prepared.tuner.averaged["towers.depth.mean"], prepared.tuner.towers.tower("depth").mean
    )
    found = []
    for batch in prepared.tuner.live.epoch(0):
        with torch.no_grad():
            found.append(prepared.tuner.towers.tower("depth")(batch.features["depth"].values))
    values = torch.cat(found)
    assert values.mean(0).abs().max() < 1e-4 and (values.var(0, correction=0) - 1).abs().max() < 1e-3


# Training


def test_frozen_heads_drop_nothing():
    heads = Heads({"skeleton": HeadSpec("mlp", 1, 4, {"dropout": 0.5})}, 8)
    heads.freeze(["skeleton"])
    towers = Towers(heads, {}, 1).train()
    values = torch.randn(2, 3, 1, 4)
    assert torch.equal(towers.embed("skeleton", values), towers.embed("skeleton", values))


def test_a_seed_is_a_run_and_training_changes_the_encoder(bank):
    one, same, other = (trained(bank, seed=seed) for seed in (0, 0, 1))
    assert curve(one) == curve(same) and curve(one) != curve(other)
    files = [load_file(path / "encoder_depth.safetensors") for path in (one, same)]
    before = load_encoder(**_plain(VIP), modality="depth").model.state_dict()
    assert files[0].keys() == before.keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    moved = [name for name, value in before.items() if not torch.equal(value, files[0][name])]
    assert len(moved) > 20


def test_only_what_is_asked_for_changes(bank):
    before = load_encoder(**_plain(VIP), modality="depth").model.state_dict()
    last = load_file(trained(bank, tune=depth(mode="last:1")) / "encoder_depth.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(value, last[name])}
    assert moved and not any("layers.0." in name or "embeddings" in name for name in moved)
    lora = depth(mode="lora", targets=["q_proj", "v_proj"], rank=2, learning_rate=0.1)
    adapted, again = (load_file(trained(bank, tune=lora) / "encoder_depth.safetensors") for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in adapted.items())
    moved = {name for name, value in before.items() if not torch.equal(value, adapted[name])}
    assert moved == {
        f"vision_model.encoder.layers.{n}.self_attn.{p}.weight" for n in (0, 1) for p in ("q_proj", "v_proj")
    }


@pytest.mark.parametrize(
    ("name", "options", "mode", "precision"),
    [
        ("omnivore-swin-t", {"architecture": "tiny", "preset": "cmvra"}, "lora", "bf16"),
        ("omnimae-vit-b", {"architecture": "tiny"}, "last:1", "fp32"),
    ],
)
def test_other_encoders_are_trained_and_their_files_load_strictly(bank, name, options, mode, precision):
    tuned = depth(encoder=name, options=options, mode=mode, frames=None, learning_rate=1e-2)
    directory = trained(bank, tune=tuned, loop={"epochs": 1, "precision": precision}, checkpointing=True)
    before = load_encoder(name, "random", modality="depth", **options).model.state_dict()
    path = directory / "encoder_depth.safetensors"
    after = load_encoder(name, str(path), modality="depth", **options).model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved and before.keys() == after.keys()
    assert all(key.endswith("weight") or mode != "lora" for key in moved)
    assert np.isfinite([row["train_loss"] for row in curve(directory)]).all()


@pytest.mark.parametrize(
    "case",
    [one for one in CASES if one.name in FOLDERS],
    ids=lambda case: case.name,
)
def test_a_model_of_transformers_is_trained_into_a_folder_that_extraction_takes(bank, tmp_path, case):
    """Heads that the folder has, its processor and what is not trained stay as they were."""
    folder = tmp_path / "official"
    whole = case.save(folder).state_dict()
    field = "embedding" if case.name.startswith(("clip", "xclip", "videomae", "vjepa2")) else "cls"
    tuned = TuneConfig(encoder=case.name, weights=str(folder), mode="last:1", learning_rate=1e-3)
    modalities = RECIPE["modalities"] | {"depth": ModalityConfig(field=field, head="linear")}
    tuned.frames = case.frames
    directory = trained(bank, loop={"epochs": 1}, tune={"depth": tuned}, modalities=modalities)
    path = directory / "encoder_depth"
    encoder = load_encoder(case.name, str(path), modality="depth")
    first = load_encoder(case.name, str(folder), modality="depth")
    moved = {
        name
        for name, value in first.model.state_dict().items()
        if not torch.equal(value, encoder.model.state_dict()[name])
    }
    assert moved and not any("embeddings" in name for name in moved)
    assert encoder.name == first.name and encoder.preprocess == first.preprocess
    note = json.loads((directory / "encoder_depth.json").read_text())
    assert (
        note["weights"] == encoder.space["weights"] and note["encoder"]["initial"] == first.space["weights"]
    )
    assert f"--weights {path} " in note["extract"]
    assert align.load("latest", bank.path).settings("depth")["extract"] == note["extract"]
    kept = transformers_tensors(path)
    assert kept.keys() == whole.keys()
    heads = [name for name in kept if "classifier" in name or "predictor" in name or "text_model" in name]
    assert all(torch.equal(kept[name], whole[name]) for name in heads)
    assert heads


def test_heads_take_what_extraction_with_the_folder_makes_and_scores_on_seen_clips_are_refused(
    bank, corpus, workers, tmp_path
):
    case = next(one for one in CASES if one.name == "clip-vit-b32")
    case.save(tmp_path / "official")
    tuned = TuneConfig(encoder=case.name, weights=str(tmp_path / "official"), frames=2, learning_rate=1e-3)
    directory = trained(bank, loop={"epochs": 1}, tune={"depth": tuned})
    recipe = {"encoder": case.name, "sampling": {"frames": 2}}
    extract(corpus, bank.path, workers, "depth", recipe, str(directory / "encoder_depth"))
    made = bank.select("synthetic", "depth", field="embedding")
    assert align.load("latest", bank.path).embed("depth", made).shape == (CLIPS, 8)
    assert [one.path.parent for one in trainings(bank, made)] == [directory]
    with pytest.raises(LeakageError, match=r"encoder_depth\.json"):
        probe(str(bank.path), modalities="depth", fields={"depth": "embedding"}, protocol="cross-view")


def transformers_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """By the class that saved them."""
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder).state_dict()


def test_minilm_is_trained_with_adapters_and_is_a_text_encoder_again(bank):
    joint = {"depth": ModalityConfig(field="embedding", head="linear"), "text": ModalityConfig(head="linear")}
    tuned = TuneConfig(encoder="minilm", mode="lora", targets=["query", "value"], rank=2, learning_rate=1e-2)
    supervised = [LossConfig(options={"same_label": "positive"})]
    changed = {"modalities": joint, "tune": depth() | {"text": tuned}, "losses": supervised}
    directory = trained(bank, loop={"epochs": 1}, **changed)
    path = directory / "encoder_text"
    encoder, package = load_encoder("minilm", str(path)), load_encoder("minilm")
    texts = ["somebody takes a seat", "a person waves"]
    ours, theirs = encoder.encode_text(texts), package.encode_text(texts)
    assert torch.allclose(ours.norm(dim=1), torch.ones(2), atol=1e-5) and not torch.equal(ours, theirs)
    assert (ours * theirs).sum(1).min() > 0.5  # two steps of thin matrices
    note = json.loads((directory / "encoder_text.json").read_text())
    assert "labels" in note["supervision"]
    assert note["weights"] == encoder.space["weights"] != package.space["weights"]
    further = depth() | {"text": TuneConfig(**(vars(tuned) | {"weights": str(path)}))}
    again = trained(bank, loop={"epochs": 1}, **(changed | {"tune": further, "losses": [LossConfig()]}))
    inherited = json.loads((again / "encoder_text.json").read_text())["supervision"]
    assert inherited == note["supervision"]


def test_a_clip_with_fresh_weights_is_a_folder_with_its_tokenizer(bank):
    tuned = depth(encoder="clip-vit-b32", mode="full")
    path = trained(bank, loop={"epochs": 1}, tune=tuned) / "encoder_depth"
    encoder = load_encoder("clip-vit-b32", str(path), modality="depth", architecture="tiny")
    fresh = load_encoder("clip-vit-b32", "random", modality="depth", architecture="tiny")
    assert not torch.equal(encoder.model.visual_projection.weight, fresh.model.visual_projection.weight)
    words = ["a person waves"]
    assert torch.allclose(encoder.encode_text(words), fresh.encode_text(words), atol=1e-4)  # left as it was


def test_clips_of_several_lengths_make_no_batch():
    """Windows of sounds, frames that are not cropped."""
    stream = ClipStream(None, None, str, 2, EndToEndError, "align.end_to_end: tune.audio")
    clips = [torch.zeros(count, 4, 3) for count in (1, 1, 2)]
    assert stream._stacked(clips[:2]).shape == (2, 1, 4, 3) and stream._stacked([]).shape == (0,)
    with pytest.raises(EndToEndError, match=r"tune.audio: prepared clips of \(1, 4, 3\) and of \(2, 4, 3\)"):
        stream._stacked(clips)


def test_two_encoders_of_one_modality_are_two_files(bank, monkeypatch):
    monkeypatch.undo()  # each of them has decode processes of its own
    names = ("depth.a", "depth.b")
    field = ModalityConfig(modality="depth", field="embedding", head="linear")
    tuned = depth()["depth"]
    directory = trained(
        bank, loop={"epochs": 1}, modalities=dict.fromkeys(names, field), tune=dict.fromkeys(names, tuned)
    )
    weights = [json.loads((directory / f"encoder_{name}.json").read_text())["weights"] for name in names]
    assert len(set(weights)) == 2


def stopped(bank: Bank, steps: int, **changed) -> Path:
    """The folder of a run that was interrupted after some steps, having saved each of them."""
    with ExitStack() as stack:
        prepared = prepare(bank, config(**changed), stack)
        tuner, update = prepared.tuner, prepared.tuner._update

        def interrupt(*arguments):
            if tuner.done == steps:
                raise KeyboardInterrupt
            return update(*arguments)

        tuner._update = interrupt
        with pytest.raises(KeyboardInterrupt):
            tune(bank, prepared)
    return tuner.state_path.parent


def test_an_interrupted_run_goes_on_with_the_next_step(bank):
    changed = {"loop": {"epochs": 3}, "tune": depth(crop=0.7)}
    whole = trained(bank, **changed)
    directory = stopped(bank, 3, **changed)  # in the second epoch of two steps each
    assert read_state(directory / "state.pt")["done"] == 3
    found, own = interrupted(bank, "latest", EndToEndConfig(), COMMAND)
    assert found == directory and own == config(**changed)
    with ExitStack() as stack:
        resumed = go_on(bank, found, prepare(bank, own, stack))
    assert curve(resumed) == curve(whole)
    one, other = (load_file(path / "encoder_depth.safetensors") for path in (resumed, whole))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (resumed / "heads.safetensors").read_bytes() == (whole / "heads.safetensors").read_bytes()
    assert not (directory / "state.pt").exists()
    with pytest.raises(ResumeError, match="no such interrupted training"):
        interrupted(bank, "latest", EndToEndConfig(), COMMAND)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_curve_and_weights(bank, tmp_path):
    path = tmp_path / "recipe.yaml"
    asked = config({"epochs": 30}).as_json()
    path.write_text(yaml.safe_dump(asked, sort_keys=False))
    command = [sys.executable, "-m", "align.end_to_end", "--config", str(path), "--bank", str(bank.path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (states := list(bank.path.glob("runs/*/state.pt"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < read_state(states[0])["done"] < 60, "training was over before the kill arrived"
    assert end_to_end(str(bank.path), resume="latest") == 0
    (resumed,) = (path.parent for path in bank.path.glob("runs/*/encoder_depth.safetensors"))
    whole = trained(bank, loop={"epochs": 30})
    assert curve(resumed) == curve(whole)
    one, other = ((path / "encoder_depth.safetensors").read_bytes() for path in (resumed, whole))
    assert one == other


# Several processes


def first_gradients(path: Path, share: int) -> dict[str, torch.Tensor]:
    """Loss and gradients of the first step, before clipping: micro-batches of 3 on each rank."""
    with ExitStack() as stack:
        calm = AugmentConfig(token_drop=0, time_crop=1, time_warp=0)  # it is drawn by each rank
        changed = {"augment": calm, "losses": [LossConfig(options={"learn_temperature": True})]}
        asked = config({"batch": share, "clip_norm": 0.0}, **changed)
        tuner = prepare(Bank.open(path), asked, stack).tuner
        tuner.heads.train()
        tuner.optimizer.step = lambda: None
        loss = tuner._update(tuner.live.epoch(0), 1, (0, 0))
        return {"loss": loss} | gradients(tuner)


def work(path: Path, out: Path) -> None:
    """What each rank does."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        torch.save(first_gradients(path, 4), out / f"{distributed.rank()}.pt")


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_gradients_of_one_with_the_doubled_batch(bank, tmp_path):
    arguments = f"Path({str(bank.path)!r}), Path({str(tmp_path)!r})"
    code = f"from pathlib import Path; from test_align_end_to_end import work; work({arguments})"
    port = free_port()
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment(r, port)) for r in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    whole = first_gradients(bank.path, 8)
    assert any(name.startswith("towers.depth.model") for name in whole)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_under_torchrun_the_command_trains_and_one_rank_writes(bank, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config({"epochs": 1}).as_json(), sort_keys=False))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "align.end_to_end", "--config", str(recipe), "--bank", str(bank.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (weights,) = bank.path.glob("runs/*/encoder_depth.safetensors")
    assert done.stdout.strip() == str(weights.parent)
    assert json.loads((weights.parent / "config.json").read_text())["training"]["processes"] == 2


# What is left


def test_the_trained_encoder_makes_features_that_its_heads_take(bank, corpus, workers):
    recipe = {"encoder": "clip-vip-b16", "options": {"architecture": "tiny"}, "sampling": {"frames": FRAMES}}
    extract(corpus, bank.path, workers, "depth", recipe, "random")
    directory = trained(bank)
    heads = align.load("latest", bank.path)
    assert heads.directory == directory
    before = bank.select("synthetic", "depth", field="embedding")
    own = heads.settings("depth")
    command = (
        "python -m extract --dataset synthetic --modality depth --encoder clip-vip-b16 --weights "
        f"{directory / 'encoder_depth.safetensors'} --bank {bank.path} --frames {FRAMES}"
    )
    assert own["extract"].startswith(f'{command}  # with options {{"architecture": "tiny"}}, which')
    with pytest.raises(SpaceError, match=f"depth head was trained on space {own['space_digest']}") as caught:
        heads.embed("depth", before)
    assert str(caught.value).endswith(own["extract"])
    with pytest.raises(SpaceError, match=r"--weights .*encoder_depth\.safetensors"):
        probe(str(bank.path), modalities="depth", protocol="cross-subject", checkpoint="latest")
    extract(corpus, bank.path, workers, "depth", recipe, str(directory / "encoder_depth.safetensors"))
    sets = bank.sql("SELECT name, space_digest FROM feature_sets WHERE modality = 'depth'").to_pylist()
    (name,) = (row["name"] for row in sets if row["space_digest"] == own["space_digest"])
    made = bank.select("synthetic", "depth", encoder=name, field="embedding")
    ours = heads.embed("depth", made)
    assert ours.shape == (CLIPS, 8) and len(sets) == 2
    with ExitStack() as stack:
        tuner = prepare(bank, config(), stack).tuner
        (batch,) = list(tuner.live.epoch(0))[:1]
    encoder = load_encoder(
        "clip-vip-b16", str(directory / "encoder_depth.safetensors"), modality="depth", architecture="tiny"
    )
    live = encoder.encode(batch.features["depth"].values)["embedding"]
    embedded = heads.embed_features("depth", live.numpy())
    rows = [list(made.items).index(clip) for clip in tuner.data.clips[batch.clips.numpy()]]
    assert np.allclose(ours[rows], embedded, atol=5e-3)  # stored as float16


def test_scores_say_what_trained_the_encoder_and_are_refused_on_what_it_saw(bank, corpus, workers, capsys):
    recipe = {"encoder": "clip-vip-b16", "options": {"architecture": "tiny"}, "sampling": {"frames": FRAMES}}
    supervised = [LossConfig(options={"same_label": "positive"})]
    weights = trained(bank, loop={"epochs": 1}, losses=supervised) / "encoder_depth.safetensors"
    extract(corpus, bank.path, workers, "depth", recipe, str(weights))
    asked = {"bank": str(bank.path), "modalities": "depth", "fields": {"depth": "embedding"}, "pool": "mean"}
    capsys.readouterr()
    assert probe(**asked, protocol="cross-subject") == 0
    err = capsys.readouterr().err
    assert "encoder trained on 8 clips of synthetic (cross-subject/train), by labels" in err
    details = bank.sql("SELECT detail FROM metrics WHERE name = 'probe/accuracy'").to_pylist()
    assert json.loads(details[0]["detail"])["supervision"] == ["labels"]
    with pytest.raises(LeakageError, match=r"encoder_depth.json: \d of the \d clips to score were seen"):
        probe(**asked, protocol="cross-view")
    further = trained(bank, loop={"epochs": 1}, where="label = 0", tune=depth(weights=str(weights)))
    last = json.loads((further / "encoder_depth.json").read_text())
    assert last["supervision"] == ["labels"]  # inherited
    extract(corpus, bank.path, workers, "depth", recipe, str(further / "encoder_depth.safetensors"))
    names = bank.sql("SELECT name, spec ->> '$.space.weights' AS weights FROM feature_sets").to_pylist()
    (name,) = (row["name"] for row in names if row["weights"] == last["weights"])
    made = bank.select("synthetic", "depth", encoder=name, field="embedding")
    assert [len(one.rows()) for one in trainings(bank, made)] == [2, 8]


def test_the_note_tells_what_trained_the_encoder(bank):
    directory = trained(bank, loop={"epochs": 1})
    note = json.loads((directory / "encoder_depth.json").read_text())
    assert note["dataset"] == "synthetic" and note["protocol"] == "cross-subject"
    assert note["training"]["part"] == "train" and note["supervision"] == []
    assert note["encoder"]["initial"] == "random" and note["encoder"]["frames"] == FRAMES
    encoder = load_encoder(
        "clip-vip-b16", str(directory / "encoder_depth.safetensors"), modality="depth", architecture="tiny"
    )
    assert note["weights"] == encoder.space["weights"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/align/end_to_end").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_parses(path):
    run = subprocess.run(
        [sys.executable, "-m", "align.end_to_end", "--config", str(path), "--print-config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    resolved = yaml.safe_load(run.stdout)
    for key, value in yaml.safe_load(path.read_text()).items():
        if key in ("train", "tune"):
            assert {name: resolved[key][name] for name in value}.keys() == value.keys()
        elif not isinstance(value, dict | list):
            assert resolved[key] == value


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tune": {}}, "no encoder to train; name some under tune"),
        ({"tune": depth() | {"rgb": TuneConfig(**VIP)}}, "tune.rgb is none of the modalities .sk.*, depth"),
        ({"tune": depth(encoder="joints")}, "joints"),
        ({"micro_batch": 0}, "--micro_batch 0; at least 1 is accepted"),
        ({"tune": depth(mode="last:9")}, "accepted are: full, lora, last:1 to last:2"),
        ({"tune": depth(encoder="minilm", options={}, weights=None)}, "minilm does not encode 'depth'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(bank, stack, changed, message):
    from encoders.errors import EncoderError
    from store.errors import FrameBankError

    with pytest.raises((FrameBankError, EncoderError), match=message) as caught:
        prepare(bank, config(**changed), stack)
    assert "\n" not in str(caught.value)
