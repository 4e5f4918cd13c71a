"""What a checkpoint's names stand for: two encoders of one modality, a text in no pair, another dataset."""

import numpy as np
import pytest
from align_bank import Toy, make_bank
from evaluate_bank import QUICK, metrics_of

import align
from align.config import AlignConfig, ModalityConfig, TextConfig
from align.run import train
from evaluate.probe import probe
from evaluate.source import open_sources
from evaluate.zero_shot import zero_shot


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Skeletons by two encoders, class texts, and a second dataset in the first encoder's spaces."""
    path = tmp_path_factory.mktemp("source") / "bank"
    make_bank(path, Toy(clips=96, modalities=("skeleton", "inertial", "text")))
    make_bank(path, Toy(clips=96, modalities=("skeleton",), revision=2))
    return make_bank(path, Toy(clips=48, modalities=("skeleton",), name="other", seed=3))


FIRST, SECOND = (Toy(revision=revision).spec("skeleton").name for revision in (1, 2))


def test_two_encoders_of_one_modality_are_aligned_as_two(bank, capsys):
    modalities = {
        "skeleton": ModalityConfig(encoder=FIRST),
        "skeleton.second": ModalityConfig(modality="skeleton", encoder=SECOND),
    }
    directory = train(bank, AlignConfig(dataset="toy", modalities=modalities, train=QUICK))
    run = f"run:{directory.name}"
    (source,) = open_sources(bank.path, "toy", None, run)
    assert source.modalities() == ["skeleton", "skeleton.second"]
    one, two = (source.clips(name, "test") for name in source.modalities())
    assert one.features.startswith(FIRST) and two.features.startswith(SECOND)
    assert one.items.tolist() == two.items.tolist() and not np.allclose(one.vectors, two.vectors)
    probe(str(bank.path), dataset="toy", checkpoint=run)
    shown = capsys.readouterr().out
    assert "skeleton.second" in shown
    used = bank.sql("SELECT DISTINCT modality FROM run_sets WHERE run_id = ?", [directory.name])
    assert used["modality"].to_pylist() == ["skeleton"]


def test_a_text_in_no_pair_teaches_nothing_and_still_names_classes(bank):
    modalities = {name: ModalityConfig() for name in ("inertial", "text")}
    modalities["skeleton"] = ModalityConfig(encoder=FIRST)
    options = {"modalities": modalities, "text": TextConfig(source="labels"), "train": QUICK}
    apart = train(bank, AlignConfig(dataset="toy", pairs="inertial-skeleton", **options))
    taught = train(bank, AlignConfig(dataset="toy", pairs="all", **options))
    assert align.load(apart).supervision == [] and align.load(taught).supervision == ["labels"]
    zero_shot(str(bank.path), dataset="toy", checkpoint=f"run:{apart.name}")
    assert {row["detail"]["modality"] for row in metrics_of(bank, "evaluate zero-shot")} == {
        "inertial",
        "skeleton",
    }
    assert all(row["detail"]["supervision"] == [] for row in metrics_of(bank, "evaluate zero-shot"))


def test_heads_fit_another_dataset_of_the_same_space(bank):
    """CMVRA's transfer: aligned on one dataset, probed on another whose classes lie along the same axes."""
    modalities = {"skeleton": ModalityConfig(encoder=FIRST), "inertial": ModalityConfig()}
    config = AlignConfig(dataset="toy", protocol="none", modalities=modalities, train=QUICK)
    run = f"run:{train(bank, config).name}"
    probe(str(bank.path), dataset="other", checkpoint=run)
    scores = {row["name"]: row for row in metrics_of(bank, "evaluate probe")}
    assert scores["probe/accuracy"]["n"] == 24 and scores["probe/accuracy"]["value"] > 0.5  # chance: 0.25
