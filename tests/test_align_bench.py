"""`python -m align.bench` on a small bank: kept between runs, ratios printed, the feed not in the way."""

import re

import pytest

from align.bench import bench
from align.bench_bank import MODALITIES, make

SMALL = {"clips": 256, "frames": 8, "dim": 64, "batch": 64, "rounds": 1, "device": "cpu"}


def test_an_epoch_is_bound_by_the_heads_not_by_the_feed(capsys, tmp_path):
    code = bench(**SMALL, head="conv", encoder_clips=0, folder=tmp_path)
    said = capsys.readouterr().out
    seconds = {name: float(value) for name, value in re.findall(r"^(.{22})\s+([\d.]+) s", said, re.MULTILINE)}
    seconds = {name.strip(): value for name, value in seconds.items()}
    assert seconds["feed only"] < seconds["compute only (limit)"]
    share = float(re.search(r"epoch / limit, rate\s+([\d.]+)", said)[1])
    assert code == (0 if share >= 0.9 else 1) or share == 0.9
    assert "256 clips" in said and all(name in said for name in MODALITIES)


def test_what_the_bank_has_is_not_written_again(tmp_path):
    bank, dataset, _ = make(tmp_path, 20, 3, 4)
    segments = bank.sql("SELECT segment_id FROM segments").column(0).to_pylist()
    again, _, _ = make(tmp_path, 20, 3, 4)
    assert again.sql("SELECT segment_id FROM segments").column(0).to_pylist() == segments
    selection = again.select(dataset, "depth")
    assert len(selection) == 20 and selection.materialise("none")[0].shape == (60, 1, 4)


@pytest.mark.slow
def test_steps_with_encoders_are_dearer_than_cached_ones(capsys, tmp_path):
    bench(
        **SMALL, anchor="efficientnet-lite0", student="efficientnet-lite0", encoder_clips=2, folder=tmp_path
    )
    said = capsys.readouterr().out
    times = [float(value) for value in re.findall(r"([\d.]+) x the first", said)]
    assert len(times) == 3 and times[0] == 1 and times[2] > max(2, times[1])
