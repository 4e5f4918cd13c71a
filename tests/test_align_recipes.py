"""Every recipe under configs/align trains for an epoch, by the real command line, on a bank made for it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import ROOT

import align
from align.run import align as command
from store.bank import Bank
from store.cli import run
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

FOLDER = ROOT / "configs" / "align"
OTHER_COMMANDS = {"mae"}  # folders of recipes for other commands, which have tests of their own
# These need media, or heads to start from: tests/test_align_end_to_end.py, tests/test_align_warm_start.py.
ELSEWHERE = {"tune", "freeze"}
RECIPES = sorted(
    path.relative_to(FOLDER)
    for path in FOLDER.rglob("*.yaml")
    if path.relative_to(FOLDER).parts[0] not in OTHER_COMMANDS
    and not ELSEWHERE & set(yaml.safe_load(path.read_text()))
)
CLIPS, CLASSES, DIM, FRAMES = 24, 3, 8, 5
BARE = {"rgb": {}, "skeleton": {"field": "tokens"}, TEXT: {}}  # for recipes that leave the modalities open


def modalities(recipe: Path) -> dict[str, dict]:
    asked = yaml.safe_load((FOLDER / recipe).read_text()).get("modalities") or BARE
    return {name: config or {} for name, config in asked.items()}


def bank_for(path: Path, recipe: Path) -> Bank:
    """The feature sets that a recipe names, of random numbers; 24 clips of 3 classes, half of them teach."""
    content = yaml.safe_load((FOLDER / recipe).read_text())
    bank, rng = Bank.open(path, create=True), np.random.default_rng(0)
    ids = [f"c{number:02d}" for number in range(CLIPS)]
    labels = np.arange(CLIPS) % CLASSES
    names = [f"class {label}" for label in range(CLASSES)]
    prompts = (content.get("text") or {}).get("prompt_set") or "name"
    bank.register(
        "toy",
        clips=pa.table(
            {"clip_id": ids, "label": labels.astype(np.int32), "subject": [str(n % 4) for n in range(CLIPS)]}
        ),
        splits=pa.table(
            {
                "protocol": ["cross-subject"] * CLIPS,
                "clip_id": ids,
                "part": ["train" if n % 4 < 2 else "test" for n in range(CLIPS)],
            }
        ),
        captions=pa.table({"clip_id": ids, "text": [f"somebody does {names[label]}" for label in labels]}),
        label_texts=pa.table(
            {
                "label": pa.array(range(CLASSES), pa.int32()),
                "label_name": names,
                "prompt_set": [prompts] * CLASSES,
                "text": names,
            }
        ),
    )
    texts = bank.add_texts([*names, *(f"somebody does {name}" for name in names)])
    for name, config in modalities(recipe).items():
        field = config.get("field") or "embedding"
        dim = content["embedding"] if config.get("head") == "identity" else DIM
        shape = (1 if field == "embedding" else FRAMES, 2 if field == "tokens" else 1, dim)
        encoder, modality = config.get("encoder") or f"toy-{name}", config.get("modality") or name
        owner, items = (TEXTS, texts) if name == TEXT else ("toy", ids)
        spec = FeatureSpec(encoder, {"name": encoder})
        with bank.writer(owner, modality, spec, [FieldSpec(field, *shape[1:])]) as writer:
            for item in items:
                writer.add(item, 0, {field: rng.normal(size=shape)}, np.arange(shape[0]) / 10)
    return bank


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_recipe_trains(recipe, tmp_path, capsys):
    bank = bank_for(tmp_path / "bank", recipe)
    told = ["--config", str(FOLDER / recipe), "--bank", str(bank.path), "--dataset", "toy"]
    told += ["--protocol", "cross-subject", "--train.epochs", "1", "--train.batch", "6"]
    with pytest.raises(SystemExit) as ended:
        run(command, argv=told)
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    alignment = align.load("latest", bank.path)
    assert alignment.modalities == list(modalities(recipe))
    assert np.isfinite([row["train_loss"] for row in alignment.curve()]).all()
    if recipe.parts[0] == "cmvra" and recipe.name != "original.yaml":
        assert alignment.embedding == 512
        assert alignment.supervision == (["captions"] if recipe.name == "synthetic.yaml" else [])
        assert [term["options"] for term in alignment.config["losses"]] == [{"temperature": 0.1}]


def test_a_later_config_lies_over_an_earlier_one(tmp_path, capsys):
    """CMVRA's schedule over its mix of encoders: both files count."""
    bank = bank_for(tmp_path / "bank", Path("cmvra/best-mix.yaml"))
    files = [FOLDER / "cmvra" / name for name in ("best-mix.yaml", "original.yaml")]
    told = [word for file in files for word in ("--config", str(file))]
    with pytest.raises(SystemExit) as ended:
        run(command, argv=[*told, "--bank", str(bank.path), "--validation.fraction", "0.2"])
    assert ended.value.code == 0, capsys.readouterr().err
    config = align.load("latest", bank.path).config
    assert (
        config["modalities"]["rgb"]["head"] == "identity"
        and config["modalities"]["ir"]["head"] == "transformer"
    )
    assert config["asked"]["train"]["learning_rate"] == 1e-4 and config["asked"]["train"]["epochs"] == 10
    assert config["training"]["held_out_by"] == "clip" and config["training"]["held_out"] > 0
