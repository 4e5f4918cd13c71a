"""`--init` and `--freeze`: a head is taken whole, stays to the bit when frozen, or is refused."""

import json

import numpy as np
import pytest
from align_bank import Toy, make_bank
from test_align_resume import interrupted

import align
from align.alignment import SpaceError
from align.config import AlignConfig, LossConfig, ModalityConfig, TrainConfig, ValidationConfig
from align.prepare import describe, prepare
from align.run import continue_run, load_clips, train
from align.train import TrainingError
from align.warm_start import StartError, earlier

QUICK = TrainConfig(epochs=3, batch=32, learning_rate=3e-3, checkpoint_seconds=0)
HELD = ValidationConfig(fraction=0.3, by="subject")
SHARED = {"train": QUICK, "embedding": 24, "validation": HELD}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("warm") / "bank", Toy(clips=60))


@pytest.fixture(scope="module")
def first(bank):
    """Skeleton and inertial, with settings that are not the defaults."""
    modalities = {
        "skeleton": ModalityConfig(head="mlp", head_options={"hidden": 40}, reduce="resample:6"),
        "inertial": ModalityConfig(standardise="token"),
    }
    losses = [LossConfig(options={"same_label": "ignore"})]
    return align.load(train(bank, AlignConfig(modalities=modalities, losses=losses, **SHARED)))


def asked(first, **options):
    return AlignConfig(
        **(SHARED | {"init": str(first.directory), "modalities": "skeleton,inertial"} | options)
    )


def weights(alignment, modality):
    return {name: value.numpy() for name, value in alignment.heads.heads[modality].state_dict().items()}


def test_training_starts_where_the_earlier_one_ended_under_its_own_settings(bank, first):
    config = asked(first)
    prepared = prepare(config, load_clips(bank, config, start := earlier(bank, config)), start)
    curve = [row["validation_loss"] for row in first.curve()]
    # The temperature is fixed; labels shape the first one's loss, so compare the retrieval.
    best = first.curve()[int(np.argmin(curve))]
    assert prepared.trainer.evaluate()[1] == pytest.approx(best["validation_recall"])
    heads = prepared.trainer.heads.train().heads
    assert heads["skeleton"].training and heads["inertial"].training
    settings = prepared.record["modalities"]
    assert (settings["skeleton"]["head_options"], settings["skeleton"]["reduce"]) == (
        {"hidden": 40},
        "resample:6",
    )
    assert settings["inertial"]["standardise"] == "token"


def test_a_frozen_anchor_stays_to_the_bit_while_fresh_heads_are_trained_towards_it(bank, first):
    config = asked(first, modalities="skeleton,inertial,depth", freeze="skeleton", pairs="anchor")
    second = align.load(train(bank, config))
    for name, value in weights(first, "skeleton").items():
        np.testing.assert_array_equal(weights(second, "skeleton")[name], value)
    assert not np.array_equal(*(next(iter(weights(run, "inertial").values())) for run in (first, second)))
    second.heads.freeze(["skeleton"])
    assert not second.heads.train().heads["skeleton"].training, "nor has a frozen head any dropout"
    second.heads.eval()
    selection = bank.select("toy", "skeleton")
    np.testing.assert_array_equal(second.embed("skeleton", selection), first.embed("skeleton", selection))
    assert second.config["init"] == {
        "taken": {"skeleton": "skeleton", "inertial": "inertial"},
        "frozen": ["skeleton"],
    }
    said = describe(second.config)
    assert f"init         {first.directory}: skeleton, inertial; fresh: depth" in said
    assert "frozen       skeleton" in said


def test_a_second_encoder_of_a_modality_starts_fresh(bank, first):
    """`skeleton.other` is a name of one's own, no camera view: it does not get the skeleton's head."""
    modalities = {"skeleton": None, "skeleton.other": ModalityConfig(modality="skeleton", head="linear")}
    config = asked(first, modalities=modalities, freeze="skeleton")
    prepared = prepare(config, load_clips(bank, config, start := earlier(bank, config)), start)
    assert prepared.record["init"] == {"taken": {"skeleton": "skeleton"}, "frozen": ["skeleton"]}


def test_what_taught_the_earlier_heads_is_recorded(bank, first, tmp_path):
    """Its supervision, and its clips, of whatever dataset: leakage guards read them."""
    assert first.supervision == ["labels"]
    second = align.load(train(bank, asked(first, where="subject <> 'P000'")))
    assert second.supervision == ["labels"]
    subjects = {row["subject"] for row in second.training_rows().to_pylist()}
    assert "P000" in subjects and len(second.training_rows()) == len(first.training_rows())


def test_latest_is_pinned_so_that_the_run_can_be_resumed(bank, first):
    interrupted(bank, asked(first, init="latest", train=TrainConfig(epochs=8, checkpoint_seconds=0)))
    states = list(bank.path.glob("runs/*/state.pt"))
    config = json.loads((states[0].parent / "config.json").read_text())
    pinned = config["asked"]["init"].removeprefix("run:")
    assert (bank.path / "runs" / pinned / "heads.safetensors").exists()
    assert len(align.load(continue_run(bank, "latest")).curve()) == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"embedding": 32}, "its heads give 24 dims, --embedding is 32; add --embedding 24"),
        ({"modalities": "depth,text"}, "it has heads for skeleton, inertial, none of which is aligned here"),
        ({"freeze": ["sound"]}, "--freeze: 'sound' is not aligned here; modalities: skeleton, inertial"),
        (
            {"modalities": "skeleton,depth", "freeze": "skeleton, depth"},
            "--freeze: the depth head starts at random and would stay so; give it weights by --init",
        ),
        (
            {"modalities": {"skeleton": ModalityConfig(head="linear"), "depth": None}},
            "its skeleton head has head 'mlp', here it is 'linear'; leave it out",
        ),
        (
            {"modalities": {"skeleton": ModalityConfig(head_options={"hidden": 41}), "depth": None}},
            r"has layers.0.weight of shape \(40, 12\), here it is \(41, 12\)",
        ),
        (
            {"modalities": {"skeleton": ModalityConfig(standardise="token"), "depth": None}},
            "its skeleton head has standardise 'dim', here it is 'token'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_recorded(bank, first, options, says):
    runs = len(bank.sql("SELECT * FROM runs"))
    with pytest.raises(StartError, match=says):
        train(bank, asked(first, **options))
    assert len(bank.sql("SELECT * FROM runs")) == runs


def test_another_space_is_refused(first, tmp_path):
    other = make_bank(tmp_path / "other", Toy(clips=60, revision=2))
    with pytest.raises(SpaceError, match="the skeleton head was trained on space"):
        train(other, asked(first))


def test_all_heads_frozen_is_nothing_to_train(bank, first):
    with pytest.raises(TrainingError, match="identity or frozen"):
        train(bank, asked(first, freeze="skeleton,inertial"))
