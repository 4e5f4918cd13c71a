"""Dataset YAMLs, class lists and prompts."""

import json

import pytest
import yaml

from extract.datasets import DATASETS, DatasetError, dataset_names, load_config, load_dataset
from extract.datasets.classes import load_names, prompt_texts
from extract.readers import load_reader
from extract.sampling import Sampling, SamplingError
from store.errors import UnknownNameError


def test_prompts():
    texts = list(prompt_texts(["wave", "clap"], {"name": "{label}", "long": "a person who can {label}"}))
    assert [tuple(text) for text in texts] == [
        (0, "wave", "name", "wave"),
        (1, "clap", "name", "clap"),
        (0, "wave", "long", "a person who can wave"),
        (1, "clap", "long", "a person who can clap"),
    ]
    with pytest.raises(DatasetError, match=r"it needs \{label\} in it"):
        list(prompt_texts(["wave"], {"bad": "a video"}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "wave\nclap\n", ["wave", "clap"]),
        ("c.csv", "id,name\n0,wave\n1,clap hands\n", ["wave", "clap hands"]),
        ("c.txt", "1 clap hands\n0 wave\n", ["wave", "clap hands"]),
        ("c.yaml", "- wave\n- clap\n", ["wave", "clap"]),
        ("c.yaml", "names: [wave, 7]\n", ["wave", "7"]),
    ],
)
def test_class_lists(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert load_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("1 a\n2 b\n", r"ids 1 to 2 for 2 names; ids 0, 1, 2"),
        ("a\na\n", "names 'a' twice"),
        ("", "names no class"),
    ],
)
def test_class_lists_that_are_wrong(tmp_path, content, match):
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(DatasetError, match=match):
        load_names(tmp_path / "c.txt")


# ---- YAMLs


@pytest.mark.parametrize("name", dataset_names())
def test_every_shipped_yaml_names_what_exists(name):
    from encoders import ENCODERS

    config = load_config(name)
    assert config.adapter in DATASETS and config.modalities
    assert {modality.encoder for modality in config.modalities.values()} <= set(ENCODERS)
    assert config.to_json() == json.loads(json.dumps(config.to_json()))


def test_depth_of_ntu_as_the_readme_has_it(tmp_path):
    _, config = load_dataset("ntu", tmp_path)
    assert config.name == "ntu" and config.root == tmp_path
    assert config.modality("depth").sampling == Sampling(frames=12)
    assert config.modality("skeleton").sampling == Sampling(frames="all", max_frames=300)
    assert config.modality("ir.ceiling") == config.modality("ir")
    with pytest.raises(UnknownNameError, match="no modality named 'thermal'; there are: depth, ir"):
        config.modality("thermal")


def test_unknown_names_list_what_there_is(tmp_path):
    with pytest.raises(
        UnknownNameError, match=r"no dataset named 'ntu6' \(did you mean 'ntu'\?\); there are: .*utd-mhad"
    ):
        load_dataset("ntu6")
    (tmp_path / "d.yaml").write_text(yaml.safe_dump({"adapter": "nut", "root": "."}))
    with pytest.raises(UnknownNameError, match=r"no dataset adapter named 'nut' .*folder, .*msrvtt, ntu"):
        load_dataset(tmp_path / "d.yaml")


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ({"adapter": "ntu"}, DatasetError, "nobody has said where its media are; give --root DIR once"),
        ({"adapter": "ntu", "root": "nowhere"}, DatasetError, "nowhere is no folder"),
        (
            {"adapter": "ntu", "path": "x"},
            DatasetError,
            "unknown key 'path'; accepted are name, adapter, root",
        ),
        ({"root": "."}, DatasetError, "names no adapter"),
        (
            {"adapter": "ntu", "root": ".", "options": {"action": 60}},
            DatasetError,
            "options.action is unknown",
        ),
        ({"adapter": "ntu", "modalities": {"rgb": 12}}, DatasetError, r"modalities\.rgb: is 12"),
        (
            {"adapter": "ntu", "modalities": {"rgb": {"encoder": "a", "fps": 3}}},
            DatasetError,
            "unknown key 'fps'",
        ),
        (
            {"adapter": "ntu", "modalities": {"rgb": {"encoder": "a", "sampling": {"frames": 0}}}},
            SamplingError,
            "frames=0",
        ),
    ],
)
def test_yamls_that_are_wrong(tmp_path, content, error, match):
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(error, match=match):
        load_dataset(tmp_path / "d.yaml")


def test_yaml_that_is_none_or_absent(tmp_path):
    (tmp_path / "d.yaml").write_text("a: [1\n")
    for path in (tmp_path / "d.yaml", tmp_path / "absent.yaml"):
        with pytest.raises(DatasetError, match=r"cannot be read \(.*\); give a dataset's YAML file"):
            load_config(path)


def test_root_of_a_yaml_is_relative_to_it_and_the_argument_wins(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "mine.yaml").write_text("adapter: ntu\nroot: media\nmodalities: {rgb: efficientnet-lite0}\n")
    assert load_config(tmp_path / "mine.yaml").root == tmp_path / "media"
    assert load_config(tmp_path / "mine.yaml", tmp_path / "other").root == tmp_path / "other"
    config = load_config(tmp_path / "mine.yaml")
    assert config.name == "mine" and config.modality("rgb").encoder == "efficientnet-lite0"


def test_samples_that_come_with_the_repository_are_read():
    adapter, config = load_dataset("samples")
    clips = list(adapter.clips())
    assert len(clips) >= 6 and len({clip.label_name for clip in clips}) == len(clips)
    for clip in clips:
        frames = load_reader("video").read(config.root / clip.media["rgb"].path, Sampling(frames=2))
        assert frames.values.shape == (2, 480, 640, 3) and frames.values.std() > 20
        assert frames.declared_frames == frames.decoded_frames > 30
        assert clip.captions
