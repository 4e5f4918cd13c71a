"""`python -m align.bench` prints its ratio, and the feed is not what an epoch waits for."""

from align.bench import bench


def test_an_epoch_is_bound_by_the_heads_not_by_the_feed(capsys):
    assert bench(clips=256, frames=8, dim=64, batch=64, rounds=1) == 0
    lines = capsys.readouterr().out.splitlines()
    seconds = {line[:22].strip(): float(line[22:].split()[0]) for line in lines}
    assert set(seconds) == {"epoch", "compute only (limit)", "feed only", "epoch / limit"}
    assert seconds["feed only"] < seconds["compute only (limit)"]
