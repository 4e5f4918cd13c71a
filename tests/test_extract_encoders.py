"""Every family of the table of encoders, tiny and with random weights, from media files to a bank."""

from importlib import import_module

import numpy as np
import pytest
from extract_toys import extract

from encoders import ENCODERS, load_encoder
from extract.datasets.synthetic import generate

WITHOUT_TOKENIZER = {("clap-htsat", "text")}  # it comes with a checkpoint's folder, and there is none
MODALITIES = ("rgb", "depth", "skeleton", "rgb+depth", "text")


def families():
    """(first name of each class with architectures, modality)."""
    seen = set()
    for name, place in ENCODERS.items():
        module, attribute = place.split(":")
        factory = getattr(import_module(module), attribute)
        if hasattr(factory, "architectures") and place not in seen:
            seen.add(place)
            cases = {(name, modality) for modality in MODALITIES if modality in factory.modalities}
            yield from sorted(cases - WITHOUT_TOKENIZER)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus") / "ntu"
    generate(root, clips=2, size=(64, 48), modalities=("rgb", "depth", "skeleton"), workers=1)
    yaml = root.parent / "synthetic.yaml"
    yaml.write_text(f"adapter: synthetic\nroot: {root}\n")
    return yaml


@pytest.mark.parametrize(("name", "modality"), families())
def test_a_family_extracts_all_its_fields(corpus, tmp_path, name, modality):
    options = {"architecture": "tiny"}
    fields = tuple(load_encoder(name, "random", "cpu", modality, **options).fields)
    recipe = {modality: {"encoder": name, "weights": "random", "options": options, "fields": fields}}
    bank = extract(corpus, tmp_path / "bank", modality=modality, modalities=recipe, precision="fp32")
    if modality == "text":
        texts = bank.sql("SELECT text FROM texts")["text"].to_pylist()
        assert np.isfinite(bank.texts(texts)).all()
        return
    for field in fields:
        selection = bank.select("synthetic", modality, field=field)
        assert len(selection) == 2
        values, offsets = selection.read([0, 1])
        assert np.isfinite(values.astype(np.float32)).all()
        for clip, times in enumerate(selection.times([0, 1])):
            assert len(times) == offsets[clip + 1] - offsets[clip]
            assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 6
