"""`python -m align` on a small real bank: bare, by options, by YAML, resumed, and told off in one line."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from align_bank import Toy, make_bank

import align
from align.config import (
    AlignConfig,
    AugmentConfig,
    LossConfig,
    ModalityConfig,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)
from align.recipe import RecipeError
from align.run import train
from store.bank import Bank
from store.errors import UnknownNameError
from store.select import EmptySelectionError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("align") / "bank")


def command(*arguments, cwd=None, check=None):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "align", *map(str, arguments)],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


# The command -------------------------------------------------


def test_help_answers_within_a_second_and_names_the_recipe():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help", check=0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--pairs" in done.stdout and "--train.learning-rate" in done.stdout
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1, "of processor time: a busy neighbour does not matter"


def test_bare_align_covers_the_bank_prints_the_recipe_and_leaves_a_checkpoint(tmp_path):
    bank = make_bank(tmp_path / "bank")
    done = command("--train.epochs", 2, cwd=tmp_path, check=0)
    directory = Path(done.stdout.strip())
    assert (tmp_path / directory / "heads.safetensors").exists()
    assert "align toy (cross-subject/train): 60 clips" in done.stderr
    for part in (
        "depth",
        "skeleton",
        "inertial",
        "text",
        "captions",
        "infonce over all",
        "supervision  captions",
    ):
        assert part in done.stderr
    run = bank.sql(
        "SELECT status, config ->> '$.dataset' AS dataset FROM runs WHERE command = 'align'"
    ).to_pylist()
    assert run == [{"status": "done", "dataset": "toy"}]
    names = bank.sql("SELECT name FROM metrics ORDER BY 1").column("name").to_pylist()
    assert names == ["align/train_loss"]
    assert not list(bank.path.glob("runs/*/state.pt")), "a finished run needs no state"


def test_errors_are_one_line_and_exit_2(tmp_path):
    done = command("--bank", tmp_path / "nowhere", check=2)
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_wrong_key_in_yaml_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("modalities: {skeleton: {encodr: joints}, text: }\n")
    done = command("--config", tmp_path / "recipe.yaml", check=2)
    assert "encodr" in done.stderr and "Traceback" not in done.stderr


def test_yaml_and_overrides(bank, tmp_path):
    recipe = {
        "bank": str(bank.path),
        "modalities": {"skeleton": {"head": "sequence", "reduce": "resample:6"}, "inertial": None},
        "embedding": 24,
        "losses": [{"name": "infonce", "options": {"temperature": 0.2}}],
        "train": {"epochs": 1},
        "validation": {"fraction": 0.3, "by": "subject"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = command("--config", tmp_path / "recipe.yaml", "--train.epochs", 2, check=0)
    alignment = align.load(done.stdout.strip())
    assert alignment.embedding == 24 and alignment.modalities == ["skeleton", "inertial"]
    skeleton = alignment.settings("skeleton")
    assert (skeleton["head"], skeleton["reduce"], skeleton["head_options"]) == (
        "sequence",
        "resample:6",
        {"steps": 6},
    )
    assert len(alignment.curve()) == 2 and "validation_recall" in alignment.curve()[0]
    assert alignment.config["training"]["held_out_by"] == "subject"


def test_default_yaml_is_the_default():
    written = yaml.safe_load((ROOT / "configs/align/default.yaml").read_text())
    assert written == AlignConfig().as_json()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/align").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_in_configs_parses(path):
    done = command("--config", path, "--print_config", check=0)
    values = yaml.safe_load(done.stdout)
    del values["bank"], values["resume"]
    values.pop("config", None)
    assert AlignConfig.from_json(values)


# What is resolved --------------------------------------------


def test_fewer_than_two_names_get_the_extract_command(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(modalities=("skeleton",), clips=12))
    with pytest.raises(
        RecipeError, match="needs two modalities, toy gives skeleton; python -m extract --dataset toy"
    ):
        train(bank, AlignConfig())


def test_an_empty_bank_says_how_to_fill_it(tmp_path):
    with pytest.raises(RecipeError, match="no dataset in it; python -m extract --dataset NAME"):
        train(Bank.open(tmp_path / "bank", create=True), AlignConfig())


def test_several_datasets_are_listed(tmp_path):
    make_bank(tmp_path / "bank", Toy(clips=12))
    bank = make_bank(tmp_path / "bank", Toy(clips=12, name="other"))
    with pytest.raises(RecipeError, match=r"several datasets \(other, toy\); say which: --dataset NAME"):
        train(bank, AlignConfig())
    with pytest.raises(UnknownNameError, match=r"no dataset named 'tory' .did you mean 'toy'.*other, toy"):
        train(bank, AlignConfig(dataset="tory"))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            AlignConfig(modalities="skeleton,audio"),
            RecipeError,
            "no audio features of toy .*extract --dataset toy --modality audio",
        ),
        (AlignConfig(modalities="skeleton"), RecipeError, "needs two modalities, toy gives skeleton"),
        (
            AlignConfig(protocol="cross-view"),
            UnknownNameError,
            "no protocol named 'cross-view'.*cross-subject",
        ),
        (AlignConfig(part="nowhere"), Exception, "nowhere|0 clips"),
        (AlignConfig(where="label = 99"), EmptySelectionError, "none of its 96 rows fits where='label = 99'"),
        (AlignConfig(pairs="rgb-text"), ValueError, "'rgb' is not aligned here"),
        (AlignConfig(text=TextConfig("labels", "sentences")), RecipeError, "prompt sets: names"),
        (
            AlignConfig(validation=ValidationConfig(by="shoe_size")),
            RecipeError,
            "'shoe_size' is no column of clips",
        ),
        (
            AlignConfig(validation=ValidationConfig(by="camera")),
            RecipeError,
            "all training clips have the same camera",
        ),
        (AlignConfig(losses=[LossConfig("centre")]), UnknownNameError, "no loss named 'centre'.*infonce"),
        (
            AlignConfig(modalities={"skeleton": ModalityConfig(encoder="slowfast"), "inertial": None}),
            Exception,
            "slowfast",
        ),
    ],
)
def test_what_the_bank_does_not_have_is_named_with_what_it_has(bank, config, error, message):
    with pytest.raises(error, match=message):
        train(bank, config)


def test_captions_by_default_labels_on_request_and_both_are_owned_up_to(bank):
    config = AlignConfig(modalities="skeleton,text", train=TrainConfig(epochs=1))
    assert align.load(train(bank, config)).supervision == ["captions"]
    config.text = TextConfig("labels")
    directory = train(bank, config)
    assert align.load(directory).supervision == ["labels"]
    assert align.load(directory).config["text_source"] == "labels"
    config.text = TextConfig()
    config.losses = [LossConfig(options={"same_label": "positive"})]
    assert align.load(train(bank, config)).supervision == ["captions", "labels"]


def test_generated_captions_are_used_by_name_or_where_there_are_no_others(tmp_path):
    from align.recipe import resolve_text
    from store.captions import Captioned, add_captions
    from store.tables import text_id

    bank = make_bank(tmp_path / "bank", Toy(clips=6))
    clips = bank.sql("SELECT clip_id FROM clips ORDER BY clip_id")["clip_id"].to_pylist()
    made = {clip: [text_id(f"somebody in {clip}")] for clip in clips}
    add_captions(
        bank.catalog, "toy", "llava-next@1", [Captioned(clip, [f"somebody in {clip}"]) for clip in clips]
    )
    own = resolve_text(bank, "toy", TextConfig())
    assert own[0] == "captions" and not {*made[clips[0]]} & {*own[1][clips[0]]}
    assert resolve_text(bank, "toy", TextConfig(caption_source="llava-next@1")) == ("captions", made)
    with pytest.raises(RecipeError, match=r"--text\.source captions, --text\.caption_source blip"):
        resolve_text(bank, "toy", TextConfig(caption_source="blip"))
    with bank.catalog.transaction() as connection:
        connection.execute("DELETE FROM captions WHERE source IS DISTINCT FROM 'llava-next@1'")
    assert resolve_text(bank, "toy", TextConfig())[0] == "labels"
    assert resolve_text(bank, "toy", TextConfig("captions")) == ("captions", made)


def test_without_captions_the_class_texts_are_used(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=24, captions=False))
    directory = train(bank, AlignConfig(train=TrainConfig(epochs=1)))
    assert align.load(directory).supervision == ["labels"]


def test_missing_modalities_are_masked_or_dropped(bank):
    config = AlignConfig(modalities="depth,skeleton,inertial", train=TrainConfig(epochs=1))
    masked = align.load(train(bank, config)).config["training"]["clips"]
    config.missing = "drop"
    dropped = align.load(train(bank, config)).config["training"]["clips"]
    assert (masked, dropped) == (60, 48)


def test_training_rows_are_recorded_with_their_roles(bank):
    config = AlignConfig(train=TrainConfig(epochs=1), validation=ValidationConfig(fraction=0.3, by="subject"))
    alignment = align.load(train(bank, config))
    rows = alignment.training_rows().to_pylist()
    assert {row["subject"] for row in rows} == {"P000", "P001", "P002"}, (
        "the test subjects are not among them"
    )
    held = {row["subject"] for row in rows if row["role"] == "validation"}
    kept = {row["subject"] for row in rows if row["role"] == "train"}
    assert len(held) == 1 and not held & kept and len(rows) == 60
    assert len(alignment.config["training"]["rows_sha256"]) == 64


def test_views_are_drawn_from_the_bank(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=24, views=2, without_depth=0))
    config = AlignConfig(views=2, modalities="skeleton,depth", protocol="none", train=TrainConfig(epochs=1))
    loaded = align.load(train(bank, config))
    assert loaded.config["training"]["views"] == 2 and loaded.config["protocol"] is None
    from align.run import load_clips

    skeleton = load_clips(bank, config).data.tracks["skeleton"]
    assert skeleton.counts.tolist() == [2] * 24 and len(skeleton.features) == 48


# Training and resuming ---------------------------------------


def test_learns_to_find_the_other_modality_and_the_words_for_it(bank):
    config = AlignConfig(train=TrainConfig(epochs=40, batch=64, learning_rate=3e-3))
    alignment = align.load(train(bank, config))
    test = {
        name: bank.select("toy", name, protocol="cross-subject", part="test")
        for name in ("skeleton", "inertial")
    }
    skeleton, inertial = (alignment.embed(name, selection) for name, selection in test.items())
    labels = test["skeleton"].labels
    nearest = labels[(inertial @ skeleton.T).argmax(1)]
    assert (nearest == test["inertial"].labels).mean() > 0.7, "chance is 0.25"
    words = alignment.embed_texts(bank.texts(["wave", "kick", "clap", "sit"]))
    assert ((skeleton @ words.T).argmax(1) == labels).mean() > 0.7


def test_nothing_holds_the_catalog_while_training(bank, monkeypatch):
    """Another process may write in the middle of an epoch."""
    import align.train as module

    original, seen = module.progress, []

    def probing(epochs):
        def show(row):
            code = f"from store.bank import Bank; b = Bank.open({str(bank.path)!r}); b.add_texts(['x'])"
            if row["epoch"] == 1:
                done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=20)
                seen.append(done.returncode)

        return show

    monkeypatch.setattr(module, "progress", probing)
    train(bank, AlignConfig(train=TrainConfig(epochs=2)))
    assert seen == [0] and original is not None


def test_features_too_large_for_memory_are_refused_before_loading(bank, monkeypatch):
    import align.materialise as module

    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(RecipeError, match="set its reduce to mean, cls or resample:K with a smaller K"):
        train(bank, AlignConfig())


def test_config_survives_json():
    config = AlignConfig(
        modalities={"skeleton": ModalityConfig(head="mlp", head_options={"hidden": 8}), "text": None},
        losses=[LossConfig(pairs="anchor"), LossConfig(weight=0.5)],
        augment=AugmentConfig(noise=0.1),
    )
    again = AlignConfig.from_json(json.loads(json.dumps(config.as_json())))
    assert again.as_json()["losses"] == config.as_json()["losses"]
    assert again.modalities["skeleton"] == config.modalities["skeleton"] and np.isclose(
        again.augment.noise, 0.1
    )
