"""Checkpoints: what they hold, that they mean the same after loading, and that another space is refused."""

import json

import numpy as np
import pytest
import torch
from align_bank import Toy, make_bank

import align
from align.alignment import SpaceError
from align.checkpoint import FORMAT, CheckpointError
from align.config import AlignConfig, ModalityConfig, TrainConfig
from align.recipe import choose_head
from align.run import train

QUICK = TrainConfig(epochs=3, batch=32)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("checkpoint") / "bank")


@pytest.fixture(scope="module")
def directory(bank):
    return train(bank, AlignConfig(train=QUICK))


@pytest.fixture
def alignment(directory):
    return align.load(directory)


def test_holds_heads_config_curve_and_rows_and_no_pickle(directory):
    files = {path.name for path in directory.iterdir() if path.is_file()}
    assert files >= {"heads.safetensors", "config.json", "curve.json", "training_rows.parquet"}
    assert not files & {"state.pt"}
    config = json.loads((directory / "config.json").read_text())
    assert config["format"] == FORMAT
    for own in config["modalities"].values():
        assert own["feature_set"].startswith(own["encoder"] + "@") and len(own["space_digest"]) == 12


def test_what_was_left_open_is_chosen_by_the_shape_of_the_features(alignment):
    chosen = {name: alignment.settings(name) for name in alignment.modalities}
    assert {name: own["head"] for name, own in chosen.items()} == {
        "depth": "sequence",
        "skeleton": "sequence",
        "inertial": "sequence",
        "text": "mlp",
    }
    assert chosen["skeleton"]["reduce"] == "resample:12" and chosen["text"]["reduce"] == "mean"
    assert {own["standardise"] for own in chosen.values()} == {"dim"}
    assert choose_head(steps=32, tokens=49, dim=1280) == "conv", "too wide to flatten"
    assert choose_head(steps=1, tokens=49, dim=1280) == "attention"


def test_embeds_unit_rows_in_the_order_asked_for(bank, alignment):
    selection = bank.select("toy", "skeleton")
    everything = alignment.embed("skeleton", selection)
    assert everything.shape == (120, 256) and everything.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(everything, axis=1), 1, rtol=1e-5)
    rows = np.array([7, 3, 100, 3])
    np.testing.assert_allclose(alignment.embed("skeleton", selection, rows), everything[rows], atol=1e-5)
    assert alignment.embed("skeleton", selection, np.array([], int)).shape == (0, 256)


def test_embeds_in_chunks_as_at_once(bank, alignment, monkeypatch):
    selection = bank.select("toy", "depth")
    whole = alignment.embed("depth", selection)
    monkeypatch.setattr("align.alignment.CHUNK", 7)
    np.testing.assert_allclose(alignment.embed("depth", selection), whole, atol=1e-5)


def test_what_was_trained_is_what_is_loaded(bank):
    """The trainer's own embeddings of its training clips, within the rounding of float16 features."""
    from align.prepare import prepare
    from align.run import load_clips

    config = AlignConfig(train=QUICK, modalities="skeleton,inertial")
    prepared = prepare(config, load_clips(bank, config))
    prepared.trainer.run()
    loaded = align.load(train(bank, config))
    batch = next(iter(prepared.trainer.loader.in_order()))
    prepared.trainer.heads.eval()
    with torch.no_grad():
        expected = prepared.trainer.heads(batch.features, batch.masks)["skeleton"].numpy()
    clips = prepared.trainer.data.clips[: len(expected)].tolist()
    selection = bank.select("toy", "skeleton", protocol="cross-subject", part="train")
    rows = np.array([selection.items.tolist().index(clip) for clip in clips])
    np.testing.assert_allclose(loaded.embed("skeleton", selection, rows), expected, atol=5e-3)


@pytest.mark.parametrize(
    ("reduce", "head"),
    [
        ("mean", "linear"),
        ("cls", "mlp"),
        ("none", "transformer"),
        ("none", "conv"),
        ("resample:5", "attention"),
    ],
)
def test_every_way_of_reading_trains_and_embeds(bank, reduce, head):
    one = ModalityConfig(reduce=reduce, head=head)
    config = AlignConfig(modalities={"skeleton": one, "inertial": one}, train=TrainConfig(epochs=1, batch=32))
    alignment = align.load(train(bank, config))
    embedded = alignment.embed("skeleton", bank.select("toy", "skeleton"))
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)


# Spaces ------------------------------------------------------


def test_another_space_is_refused_naming_both(tmp_path, alignment):
    other = make_bank(tmp_path / "other", Toy(clips=12, revision=2))
    selection = other.select("toy", "skeleton")
    own = alignment.settings("skeleton")["space_digest"]
    with pytest.raises(SpaceError) as caught:
        alignment.embed("skeleton", selection)
    message = str(caught.value)
    assert own in message and selection.space_digest in message and own != selection.space_digest
    assert "skeleton" in message and "\n" not in message
    with pytest.raises(SpaceError, match="the text head was trained on space"):
        alignment.embed_texts(np.zeros((1, 12), np.float32), space_digest="0123456789ab")


def test_another_sampling_of_the_same_space_is_welcome(tmp_path, alignment):
    class Slower(Toy):
        def spec(self, modality, frames=0):
            return super().spec(modality, frames=5)

    other = make_bank(tmp_path / "other", Slower(clips=12))
    selection = other.select("toy", "skeleton")
    assert selection.feature_set != alignment.settings("skeleton")["feature_set"]
    assert len(alignment.embed("skeleton", selection)) == 12


def test_another_field_or_modality_is_refused(bank, alignment):
    with pytest.raises(CheckpointError, match="no head for modality 'audio'; it has: depth, skeleton"):
        alignment.embed("audio", bank.select("toy", "skeleton"))
    with pytest.raises(SpaceError):
        alignment.embed("inertial", bank.select("toy", "skeleton"))


def test_a_camera_view_uses_the_head_of_its_modality(bank, alignment):
    assert alignment.head_of("skeleton.ceiling") == "skeleton"
    selection = bank.select("toy", "skeleton")
    np.testing.assert_array_equal(
        alignment.embed("skeleton.ceiling", selection), alignment.embed("skeleton", selection)
    )


def test_texts_embed_near_their_own_kind(bank, alignment):
    embedded = alignment.embed_texts(bank.texts(["wave", "kick"]))
    assert embedded.shape == (2, 256)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)


# Finding one -------------------------------------------------


def test_found_by_directory_run_id_prefix_and_latest(bank, directory):
    for name in (directory, f"run:{directory.name}", f"run:{directory.name[:-2]}"):
        assert align.load(name, bank=bank.path).directory == directory
    newest = train(bank, AlignConfig(train=TrainConfig(epochs=1)))
    assert align.load("latest", bank=bank.path).directory == newest
    with pytest.raises(CheckpointError, match="no such alignment: run:nope; alignments: "):
        align.load("run:nope", bank=bank.path)


def test_a_folder_without_checkpoint_says_so(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"not a checkpoint \(config.json is missing\); python -m align"
    ):
        align.load(tmp_path)


def test_a_newer_format_is_refused(directory, tmp_path):
    config = json.loads((directory / "config.json").read_text()) | {"format": FORMAT + 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this version reads up to {FORMAT}"):
        align.load(tmp_path)
