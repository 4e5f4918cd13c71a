"""`python -m extract` over Drive&Act's look-alike: what is stored of all cameras shows the same time."""

import numpy as np
import pytest
import yaml
from conftest import ROOT
from daa_files import CAMERAS, CLIPS, second, write_release
from extract_toys import command, contents, extract

from store.bank import Bank

MODALITIES = "rgb,ir,ir.ceiling,skeleton"
PLACES = {f"{annotation}_{chunk}": (start, end) for annotation, chunk, _, start, end in CLIPS}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("daa"))


def middles(clip_id, count):
    """The moments of the drive in the middle of ``count`` equal parts of a clip."""
    start, end = PLACES["_".join(clip_id.split("_")[-2:])]
    return start + (np.arange(count) + 0.5) * (end - start) / count


def test_features_of_all_cameras_show_the_same_time(release, tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "datasets" / "daa.yaml").read_text())
    toys = {name: {"encoder": "patches", "sampling": {"frames": 4}} for name in ("rgb", "ir")}
    config |= {"name": "daa", "root": str(release), "modalities": config["modalities"] | toys}
    (tmp_path / "daa.yaml").write_text(yaml.safe_dump(config))
    bank = extract(tmp_path / "daa.yaml", tmp_path / "bank", modality=MODALITIES)
    for modality, camera in (("rgb", "kinect_color"), ("ir", "kinect_ir"), ("ir.ceiling", "ceiling")):
        stored = contents(bank, "daa", modality)
        clips = {item: value for (field, _, item), value in stored.items() if field == "tokens"}
        assert len(clips) == 9
        _, fps, early = CAMERAS[camera]
        for item, (tokens, times) in clips.items():
            behind = middles(item, 4) - second(tokens.astype(np.float64) * 255)
            assert (behind > -1e-3).all() and (behind < 1 / fps + 1e-6).all(), (modality, item)
            assert np.abs(times - early - middles(item, 4)).max() < 1 / fps  # on each file's own clock
    poses = {
        item: value for (field, _, item), value in contents(bank, "daa", "skeleton").items() if field == "raw"
    }
    for item, (raw, _) in poses.items():
        start, end = PLACES["_".join(item.split("_")[-2:])]
        assert np.allclose(raw[:, 0, 0], 1 + np.arange(start, end - 0.01, 1 / 30), atol=2e-3)  # the nose
    coverage = bank.sql("SELECT modality, clips FROM coverage WHERE dataset = 'daa' ORDER BY 1").to_pylist()
    assert {row["modality"]: row["clips"] for row in coverage}.items() >= {
        "ir.inner_mirror": 9,
        "rgb": 9,
    }.items()


@pytest.mark.slow
def test_the_shipped_yaml(release, tmp_path):
    arguments = ["--dataset", "daa", "--bank", tmp_path / "bank", "--modality", f"{MODALITIES},depth,text"]
    out, err = command(*arguments, "--root", release, "--frames", 2)
    assert "9 clips added" in out and "failed" not in out and "no thumbnail" not in err
    assert "steering_wheel: 3 of 3 recordings have no file such as steering_wheel/vp1/" in err
    bank = Bank.open(tmp_path / "bank")
    sql = (
        "SELECT modality, count(DISTINCT clip_id) AS n FROM clip_features WHERE dataset = 'daa' GROUP BY ALL"
    )
    stored = {row["modality"]: row["n"] for row in bank.sql(sql).to_pylist()}
    assert stored == dict.fromkeys(("rgb", "ir", "ir.ceiling", "depth", "skeleton"), 9)
    assert f"{3 * 34} texts added" in out
    again, _ = command(*arguments, "--frames", 2)
    assert again.count("nothing is missing") == 6
    sizes = bank.sql(
        "SELECT protocol, part, count(*) AS n FROM splits WHERE dataset = 'daa' GROUP BY ALL ORDER BY ALL"
    ).to_pylist()
    assert [tuple(row.values()) for row in sizes] == [
        ("split-0", "test", 3),
        ("split-0", "train", 3),
        ("split-0", "val", 3),
        ("split-1", "train", 9),
        ("split-2", "train", 6),
        ("split-2", "val", 3),
    ]
