"""What is extracted with what: recipes, token fields, presets, weights by modality, and room on the disk."""

import shutil
from collections import namedtuple
from contextlib import nullcontext

import numpy as np
import pytest
import yaml
from conftest import ROOT
from extract_toys import contents, install_encoders, shared_pool, write_corpus
from extract_toys import extract as extract_toy

from extract.__main__ import main
from extract.datasets.synthetic import generate
from store.bank import Bank

CMVRA = ROOT / "configs" / "extract" / "cmvra.yaml"
ALL = ("rgb", "ir", "depth", "skeleton")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=4)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Four clips of the synthetic NTU corpus."""
    root = tmp_path_factory.mktemp("synthetic") / "ntu"
    generate(root, clips=4, size=(64, 48), modalities=ALL, workers=1)
    return root


@pytest.fixture
def here(capsys, monkeypatch):
    """Run the command in this process; (stdout, stderr) after checking the exit status."""
    install_encoders()
    monkeypatch.setattr("extract.command.DecodePool", lambda *arguments: nullcontext(shared_pool()))

    def run(*arguments, check=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert exit_.value.code == check, out + err
        return out, err

    return run


@pytest.fixture
def complaint(here):
    """The one line that says what is wrong with some arguments."""

    def told(*arguments):
        _, err = here(*arguments, check=2)
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line

    return told


def stored_bytes(bank):
    """Of the values, without the segments' own index."""
    sql = "SELECT sum(frames * tokens * dim * 2) AS b FROM coverage"
    return Bank.open(bank).sql(sql)["b"][0].as_py()


def fields_of(bank, modality="rgb"):
    sql = "SELECT DISTINCT field, tokens FROM clip_features WHERE modality = ? ORDER BY 1"
    return [tuple(row.values()) for row in bank.sql(sql, [modality]).to_pylist()]


# --tokens


def test_tokens_exchanges_the_token_field_among_those_chosen(corpus, tmp_path):
    tiny = {"rgb": {"encoder": "clip-vip-b16", "weights": "random", "options": {"architecture": "tiny"}}}
    cases = {
        None: [("embedding", 1), ("tokens.pooled", 1)],
        "none": [("embedding", 1)],
        "pooled": [("embedding", 1), ("tokens.pooled", 1)],
        "all": [("embedding", 1), ("tokens", 4)],
    }
    for choice, expected in cases.items():
        bank = extract_toy(corpus, tmp_path / f"{choice}", modalities=tiny, frames=2, tokens=choice)
        assert fields_of(bank) == expected
    every = contents(bank, encoder="clip-vip-b16-tiny-random")["tokens", 0, "c001"][0]
    pooled = contents(extract_toy(corpus, tmp_path / "None", modalities=tiny, frames=2))
    mean = every.astype(np.float32).mean(1, keepdims=True)
    assert np.allclose(pooled["tokens.pooled", 0, "c001"][0], mean, atol=2e-3)


def test_a_grid_of_tokens_by_either_option_is_the_mean_of_its_cells(corpus, tmp_path):
    real = {"rgb": {"encoder": "efficientnet-lite0", "fields": "cls,tokens.grid2"}}
    bank = extract_toy(corpus, tmp_path / "a", modalities=real, frames=1, where="clip_id = 'c000'")
    assert fields_of(bank) == [("cls", 1), ("tokens.grid2", 4)]
    grid = contents(bank)["tokens.grid2", 0, "c000"][0].astype(np.float32)
    asked = {"modality": "rgb", "encoder": "efficientnet-lite0", "where": "clip_id = 'c000'", "frames": 1}
    every = contents(extract_toy(corpus, tmp_path / "b", tokens="all", **asked))
    cells = every["tokens", 0, "c000"][0].astype(np.float32).reshape(7, 7, -1)
    assert np.allclose(grid[0, 3], cells[3:, 3:].mean((0, 1)), atol=2e-3)  # rows and columns 4 to 7
    bank = extract_toy(corpus, tmp_path / "c", fields=("cls", "tokens"), tokens="grid4", **asked)
    assert fields_of(bank) == [("cls", 1), ("tokens.grid4", 16)]


def test_a_token_choice_that_an_encoder_lacks_is_an_error_that_says_whose(corpus, tmp_path, complaint):
    fixed = ("--dataset", corpus, "--bank", tmp_path / "bank", "--modality", "rgb")
    error = complaint(*fixed, "--tokens", "grid4")
    assert "rgb, encoder patches: --tokens: this encoder has no 'tokens.grid4'; of --tokens it takes" in error
    error = complaint(*fixed, "--fields", "tokens", "--tokens", "none")
    assert "--tokens none leaves nothing to write; it writes: cls, embedding, tokens" in error
    assert "tokens" in complaint(*fixed, "--tokens", "grid3")
    assert "no field named 'tokens.grid9'" in complaint(*fixed, "--fields", "tokens.grid9")


# Sizes


def test_what_all_of_it_takes_is_said_before_the_first_clip_is_read(synthetic, tmp_path, here):
    bank = tmp_path / "bank"
    common = ("--dataset", "synthetic", "--root", synthetic, "--bank", bank, "--frames", 3)
    _, err = here(*common, "--modality", "rgb,depth", "--fields", "cls,tokens.grid2")
    sized = [line for line in err.splitlines() if "to do" in line]
    assert len(sized) == 2 and all(
        "4 clips to do, about 150.0 KB (tokens.grid2 120.0 KB, cls" in x for x in sized
    )
    first_work = next(k for k, line in enumerate(err.splitlines()) if "clips/s" in line)
    assert err.splitlines().index(sized[-1]) < first_work
    assert stored_bytes(bank) == 2 * 150 * 1024


def test_steps_of_several_frames_count_once(corpus, tmp_path, here):
    arguments = ("--dataset", corpus, "--bank", tmp_path / "bank", "--modality", "rgb")
    _, err = here(*arguments, "--encoder", "clip-patches", "--frames", 5, "--fields", "cls")
    assert "4 clips to do, about 72 B (cls 72 B)" in err  # 4 clips x 3 steps x 3 x 2 bytes
    assert stored_bytes(tmp_path / "bank") == 72


def test_more_than_the_disk_holds_is_refused_with_the_numbers_and_a_way_out(
    corpus, tmp_path, complaint, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 50_000))
    fixed = ("--dataset", corpus, "--bank", tmp_path / "bank", "--modality", "rgb", "--frames", 10)
    error = complaint(*fixed, "--encoder", "efficientnet-lite0", "--tokens", "all", "--fields", "tokens")
    assert "extract: 4.8 MB would be written, 48.8 KB are free" in error  # 4 x 10 x 49 x 1280 x 2 bytes
    assert "toy/rgb efficientnet-lite0@" in error and "--tokens pooled takes 100.0 KB" in error
    error = complaint(*fixed, "--encoder", "efficientnet-lite0", "--views", 9)
    assert "fewer --frames or --views take less" in error
    assert not Bank.open(tmp_path / "bank").sql("SELECT * FROM features").num_rows
    monkeypatch.undo()


# --preset, --allow-partial, --weights


def test_a_preset_makes_another_set_and_is_refused_by_encoders_without(corpus, tmp_path, here, complaint):
    fixed = ("--dataset", corpus, "--bank", tmp_path / "bank", "--modality", "rgb")
    error = complaint(*fixed, "--preset", "cmvra")
    assert "extract: --preset: patches, the encoder of rgb, has no such choice; leave it out" in error
    error = complaint(*fixed, "--encoder", "efficientnet-lite0", "--allow-partial", "head.")
    assert "--allow-partial: efficientnet-lite0" in error
    vip = ("--encoder", "clip-vip-b16", "--weights", "random")
    assert "preset is 'cmrva'; accepted are: official, cmvra" in complaint(*fixed, *vip, "--preset", "cmrva")


def test_a_checkpoint_may_lack_what_is_allowed_and_nothing_else(corpus, tmp_path, here):
    import torch

    from encoders import load_encoder

    encoder = load_encoder("clip-vip-b16", "random", modality="rgb", architecture="tiny")
    tensors = {key: value for key, value in encoder.model.state_dict().items() if "added_cls" not in key}
    file = tmp_path / "partial.pt"
    torch.save(tensors, file)
    recipe = tmp_path / "recipe.yaml"
    options = {"encoder": "clip-vip-b16", "options": {"architecture": "tiny"}, "sampling": {"frames": 2}}
    recipe.write_text(yaml.safe_dump({"dataset": str(corpus), "modalities": {"rgb": options}}))
    arguments = ("--config", recipe, "--bank", tmp_path / "bank", "--weights", file)
    _, err = here(*arguments, check=2)
    assert "vision_model.embeddings.added_cls" in err
    out, _ = here(*arguments, "--allow-partial", "vision_model.embeddings.added_cls")
    assert "4 clips added" in out and "clip-vip-b16-tiny@" in out


def test_weights_by_modality(corpus, tmp_path, complaint, here):
    fixed = ("--dataset", corpus, "--bank", tmp_path / "bank", "--encoder", "clip-vip-b16")
    _, err = here(*fixed, "--weights", "rgb=/nowhere/a.pt,text=/nowhere/b.pt", check=2)
    assert "error: rgb: clip-vip-b16: no checkpoint file at '/nowhere/a.pt'" in err
    assert "error: text: clip-vip-b16: no checkpoint file at '/nowhere/b.pt'" in err
    error = complaint(*fixed, "--weights", "rgb=random,text=/nowhere/b.pt")
    assert error.startswith("error: text:") and "'/nowhere/b.pt'" in error
    assert "rgb: clip-vip-b16: no weights given" in complaint(*fixed, "--weights", "ir=random,text=random")
    fixed = (*fixed, "--modality", "rgb")
    assert "no checkpoint file at 'a=b.pt'" in complaint(*fixed, "--weights", "a=b.pt")  # a name with "="


# Recipes


def tiny_recipe(path, **changes):
    """configs/extract/cmvra.yaml with tiny networks."""
    recipe = yaml.safe_load(CMVRA.read_text())
    for given in recipe["modalities"].values():
        given["options"] = {"architecture": "tiny"}
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def test_cmvras_recipe_without_weights_names_the_official_files_of_all_modalities(synthetic, tmp_path, here):
    arguments = ("--dataset", "synthetic", "--root", synthetic, "--bank", tmp_path / "bank")
    _, err = here(*arguments, "--config", CMVRA, "--weights", "skeleton=random", check=2)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in lines] == ["depth", "ir", "rgb", "text"]
    for line, file in zip(lines, ["swinB_In21k"] * 2 + ["pretrain_clipvip_base_16.pt"] * 2, strict=True):
        assert "no weights given" in line and file in line and "licence" in line
    for file in ("pretrain_clipvip_base_16.pt", "swinB_In21k", "checkpoint_best_transformer.pth"):
        assert file in CMVRA.read_text()


def test_cmvras_recipe_extracts_all_modalities_with_its_encoders_its_frames_and_its_preset(
    synthetic, tmp_path, here
):
    recipe, bank = tiny_recipe(tmp_path / "recipe.yaml"), tmp_path / "bank"
    arguments = ("--dataset", "synthetic", "--root", synthetic, "--bank", bank, "--config", recipe)
    out, _ = here(*arguments, "--weights", "random")
    sets = {}
    for row in Bank.open(bank).sql("SELECT modality, encoder, spec FROM feature_sets").to_pylist():
        sets[row["modality"]] = row["encoder"], yaml.safe_load(row["spec"])
    named = {modality: encoder for modality, (encoder, _) in sets.items()}
    assert named == dict.fromkeys(("rgb", "skeleton", "text"), "clip-vip-b16-tiny-random") | dict.fromkeys(
        ("ir", "depth"), "omnivore-swin-b-tiny-random"
    )
    for modality in ALL:
        assert sets[modality][1]["reading"]["sampling"] == {"frames": 12, "rule": "cmvra"}
    assert sets["rgb"][1]["space"]["preprocess"]["depth_saturates_at"] == 255  # the preset is CMVRA's
    opened = Bank.open(bank)
    coverage = opened.sql("SELECT modality, encoded, failed FROM coverage WHERE dataset = 'synthetic'")
    assert all(row["encoded"] == 4 and row["failed"] == 0 for row in coverage.to_pylist())
    for modality in ALL:
        values, _ = opened.select("synthetic", modality, field="embedding").read([0, 1])
        assert len(values) == 2 and np.isfinite(values.astype(np.float32)).all()
        assert not np.array_equal(values[0], values[1])
    pooled = opened.select("synthetic", "ir", field="tokens.pooled")
    frames = opened.select("synthetic", "rgb", field="tokens.pooled")
    for clip in (0, 1):
        times = pooled.times([clip])[0], frames.times([clip])[0]
        assert [len(one) for one in times] == [6, 12]  # Omnivore's steps cover two frames
        assert np.allclose(times[0], times[1].reshape(6, 2).mean(1), atol=1e-3)
    out, _ = here(*arguments, "--weights", "random")
    assert out.count("nothing is missing") == 5


def test_the_recipe_counts_instead_of_the_datasets_yaml_and_the_command_line_more(corpus, tmp_path, here):
    recipe = tmp_path / "recipe.yaml"
    one = {"encoder": "patches", "sampling": {"frames": 4}, "options": {"gain": 2.0}}
    given = {
        "dataset": str(corpus),
        "modalities": {"rgb": one | {"fields": ["cls", "tokens"]}},
        "tokens": "none",
    }
    recipe.write_text(yaml.safe_dump(given))
    arguments = ("--config", recipe)
    out, _ = here(*arguments, "--bank", tmp_path / "a")
    assert "texts" not in out  # only what the recipe names
    found = contents(Bank.open(tmp_path / "a"))
    assert {(field, len(values)) for (field, _, _), (values, _) in found.items()} == {("cls", 4)}
    here(*arguments, "--bank", tmp_path / "b", "--frames", 3, "--fields", "embedding")
    told = contents(Bank.open(tmp_path / "b"))
    assert {(field, len(values)) for (field, _, _), (values, _) in told.items()} == {("embedding", 1)}
    plain = contents(extract_toy(corpus, tmp_path / "c", frames=4, fields=("cls",)))
    assert np.allclose(found["cls", 0, "c002"][0], 2 * plain["cls", 0, "c002"][0], atol=2e-3)
    runs = Bank.open(tmp_path / "a").sql("SELECT config->>'$.modalities.rgb.encoder' AS e FROM runs")
    assert runs["e"].to_pylist() == ["patches"]


@pytest.mark.parametrize(
    ("modalities", "told"),
    [
        ({"rgb": {"encodr": "patches"}}, "modalities.rgb: is {'encodr': 'patches'}"),
        ({"rgb": {"encoder": "patches", "smapling": 3}}, "modalities.rgb: unknown key 'smapling'"),
        ({"rbg": "patches"}, "modalities.rbg: no modality 'rbg'; there are: rgb, ir, depth"),
        ({"rgb": {"encoder": "patches", "options": {"gian": 2}}}, "gian"),
        ({"rgb": {"encoder": "patches", "sampling": {"frames": 3, "rule": "cmrva"}}}, "rule='cmrva'"),
        ({"rgb": {"encoder": "patches", "sampling": {"fps": 3, "rule": "cmvra"}}}, "give frames: N too"),
        ("rgb", "modalities"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(corpus, tmp_path, complaint, modalities, told):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"dataset": str(corpus), "modalities": modalities}))
    assert told in complaint("--config", recipe, "--bank", tmp_path / "bank")


def test_a_cameras_view_is_encoded_as_its_modality_is(tmp_path, here):
    dataset = write_corpus(tmp_path / "corpus", clips=2)
    listing = tmp_path / "corpus" / "clips.csv"
    listing.write_text(listing.read_text().replace("clip_id,rgb,", "clip_id,ir.ceiling,"))
    recipe = tmp_path / "recipe.yaml"
    given = {"ir": {"encoder": "patches", "sampling": {"frames": 2}, "weights": "x.pt"}}
    recipe.write_text(yaml.safe_dump({"dataset": str(dataset), "modalities": given}))
    out, _ = here("--config", recipe, "--bank", tmp_path / "bank")
    assert "toy/ir.ceiling patches@" in out and "2 clips added" in out


@pytest.mark.slow
def test_cmvras_recipe_at_full_size(synthetic, tmp_path, here):
    """The networks that are published, with random weights, of which the sets' names speak."""
    bank = tmp_path / "bank"
    common = ("--dataset", "synthetic", "--root", synthetic, "--bank", bank, "--weights", "random")
    here(*common, "--config", CMVRA)
    here(*common, "--modality", "rgb+depth", "--encoder", "omnivore-swin-b", "--frames", 4)
    opened = Bank.open(bank)
    sql = "SELECT modality, encoder, field, encoded, frames, dim FROM coverage WHERE dataset = 'synthetic'"
    found = {(row["modality"], row["field"]): row for row in opened.sql(sql).to_pylist()}
    sizes = {  # embedding, tokens.pooled, time steps of a clip
        "rgb": ("clip-vip-b16-random", 512, 768, 12),
        "skeleton": ("clip-vip-b16-random", 512, 768, 12),
        "ir": ("omnivore-swin-b-random", 1024, 1024, 6),
        "depth": ("omnivore-swin-b-random", 1024, 1024, 6),
        "rgb+depth": ("omnivore-swin-b-random", 1024, 1024, 2),
    }
    assert {modality for modality, _ in found} == set(sizes)
    for modality, (encoder, joint, width, steps) in sizes.items():
        whole, pooled = found[modality, "embedding"], found[modality, "tokens.pooled"]
        assert whole["encoder"] == pooled["encoder"] == encoder
        assert (whole["encoded"], whole["frames"], whole["dim"]) == (4, 4, joint)
        assert (pooled["encoded"], pooled["frames"], pooled["dim"]) == (4, 4 * steps, width)
        values, _ = opened.select("synthetic", modality, field="embedding").read(range(4))
        vectors = values.reshape(4, -1).astype(np.float32)
        assert np.isfinite(vectors).all() and np.linalg.matrix_rank(vectors - vectors.mean(0)) == 3
    texts = opened.sql("SELECT text FROM texts LIMIT 5")["text"].to_pylist()
    assert opened.texts(texts).shape == (5, 512)


@pytest.mark.slow
def test_the_embedded_real_weights_extract_all_modalities(synthetic, tmp_path, here):
    bank = tmp_path / "bank"
    here("--dataset", "synthetic", "--root", synthetic, "--bank", bank)
    rows = Bank.open(bank).sql("SELECT DISTINCT modality, encoder, encoded, failed FROM coverage").to_pylist()
    encoders = {row["modality"]: row["encoder"] for row in rows}
    assert encoders == dict.fromkeys(("rgb", "ir", "depth"), "efficientnet-lite0") | {
        "skeleton": "joints",
        "text": "minilm",
    }
    assert all(row["encoded"] >= 4 and row["failed"] == 0 for row in rows)
