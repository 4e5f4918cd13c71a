"""`python -m evaluate reproduce cmvra`: published figures as they stand, and ours beside them."""

import json

import numpy as np
import pyarrow as pa
import pytest

from evaluate.published import FOLDER, Experiment, read_published
from evaluate.records import Score
from evaluate.report_tables import results
from evaluate.reproduce import Line, mean_score, reproduce
from store.bank import Bank
from store.errors import UnknownNameError
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

CLIPS, CLASSES, WIDTH = 48, 3, 512


def make_bank(
    path,
    dataset="synthetic",
    protocols=("cross-subject-raw", "cross-view-raw"),
    suffix="-random",
    whole=False,
):
    """Features as CMVRA's encoders write them, with depth and skeletons if ``whole``; classes have means."""
    bank, rng = Bank.open(path, create=True), np.random.default_rng(0)
    ids, labels = [f"c{number:02d}" for number in range(CLIPS)], np.arange(CLIPS) % CLASSES
    names = [f"class {label}" for label in range(CLASSES)]
    parts = np.where(np.arange(CLIPS) % 4 < 2, "train", "test").tolist()
    bank.register(
        dataset,
        clips=pa.table(
            {"clip_id": ids, "label": labels.astype(np.int32), "subject": [str(n % 4) for n in range(CLIPS)]}
        ),
        splits=pa.table(
            {
                "protocol": [name for name in protocols for _ in ids],
                "clip_id": ids * len(protocols),
                "part": parts * len(protocols),
            }
        ),
        label_texts=pa.table(
            {
                "label": pa.array(range(CLASSES), pa.int32()),
                "label_name": names,
                "prompt_set": ["name"] * CLASSES,
                "text": names,
            }
        ),
    )
    texts, means = bank.add_texts(names), rng.normal(size=(CLASSES, WIDTH))
    vip, omnivore = (f"{name}{suffix}" for name in ("clip-vip-b16", "omnivore-swin-b"))
    for owner, modality, encoder, field, frames, width in (
        (dataset, "rgb", vip, "embedding", 1, WIDTH),
        (TEXTS, TEXT, vip, "embedding", 1, WIDTH),
        (dataset, "ir", vip, "embedding", 1, WIDTH),
        (dataset, "ir", omnivore, "tokens.pooled", 6, 16),
        (dataset, "depth", omnivore, "tokens.pooled", 6, 16),
        (dataset, "skeleton", "joints", "tokens", 8, 6),
    )[: None if whole else 4]:
        spec, items = FeatureSpec(encoder, {"name": encoder}), texts if modality == TEXT else ids
        with bank.writer(owner, modality, spec, [FieldSpec(field, 1, width)]) as writer:
            for number, item in enumerate(items):
                values = means[number % CLASSES, :width] + 0.5 * rng.normal(size=(frames, 1, width))
                writer.add(item, 0, {field: values}, np.arange(frames) / 10)
    return bank


def scores_of(bank: Bank) -> dict[tuple, float]:
    query = """
        SELECT detail ->> 'task' AS task, detail ->> 'modality' AS modality,
            detail ->> 'published_protocol' AS protocol, name, value, n FROM metrics WHERE run_id = (
                SELECT max(run_id) FROM runs WHERE command = 'evaluate reproduce' AND status = 'done')
    """
    return {tuple(row.values())[:4]: (row["value"], row["n"]) for row in bank.sql(query).to_pylist()}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_published_figures_are_consistent(path):
    """Every file is read whole, for each of its datasets, and percents are percents."""
    import yaml

    for dataset in yaml.safe_load(path.read_text())["datasets"]:
        published = read_published(path.stem, dataset)
        for one in published.experiments:
            assert one.rows() and all(0 < value < 100 for *_, value in one.rows())
            for metric, modality, protocol, value in one.rows():
                if metric == "balanced":
                    assert one.accuracy[modality][protocol] > value  # Drive&Act's common classes are easy


def test_the_cleanest_targets_come_first():
    first = read_published("cmvra", "ntu").under("base")[0]
    assert first.rows() == [("accuracy", "rgb", "CS", 53.8), ("accuracy", "rgb", "CV", 56.6)]
    assert first.recipe is None and first.needs == {"rgb": "clip-vip-b16"}
    first = read_published("cmvra", "daa").under("base")[0]
    assert first.rows() == [("accuracy", "rgb", "mean", 57.0), ("balanced", "rgb", "mean", 47.2)]


def test_an_unknown_setting_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="base-aligned"):
        read_published("cmvra", "ntu").under("best")


def test_ours_beside_the_published_what_is_missing_is_said_and_nothing_is_done_twice(tmp_path, capsys):
    bank = make_bank(tmp_path / "bank")
    told = {"bank": str(bank.path), "only": "frozen,pairwise,all CLIP-ViP"}
    reproduce("cmvra", **told)
    shown = capsys.readouterr()
    found = scores_of(bank)
    assert {key[:3] for key in found} == {
        (task, "rgb", protocol) for task in ("probe", "zero-shot") for protocol in ("CS", "CV")
    }
    assert all(value > 0.9 and n == CLIPS // 2 for value, n in found.values())  # chance: a third
    assert "no: other data, random weights" in shown.out and "53.8" in shown.out
    missing = shown.out.split("missing features")[1]
    assert "--modality depth" in missing and "--weights pretrain_clipvip_base_16.pt" in missing
    assert "--modality skeleton --bank" in missing and "--encoder joints" in missing
    assert "swinB_In21k_checkpoint.torch" in missing and "--modality ir" not in missing
    assert "--config configs/extract/cmvra-clip-vip.yaml --weights pretrain_clipvip_base_16.pt" in missing
    page = results(bank, None)
    assert (
        page.count("frozen RGB, probe (base)") == 1 and "56.6" in page and "8.4" in page
    )  # all four figures
    query = "SELECT count(*) AS n FROM runs WHERE command IN ('evaluate probe', 'evaluate zero-shot')"
    assert bank.sql(query)["n"].to_pylist() == [4]
    reproduce("cmvra", **told)
    assert "recorded as run:" in capsys.readouterr().err
    assert bank.sql(query)["n"].to_pylist() == [4] and scores_of(bank) == found


def test_drive_and_act_is_the_mean_of_its_splits_and_what_cannot_be_done_is_told(tmp_path, capsys):
    """The bank has no `sentence` prompts, so naming classes is refused; probe and neighbours are done."""
    protocols = ("split-0", "split-1", "split-2")
    bank = make_bank(tmp_path / "bank", "daa", protocols, suffix="")
    reproduce("cmvra", bank=str(bank.path), only="frozen")
    shown, found = capsys.readouterr().out, scores_of(bank)
    assert {key[:3]: n for key, (_, n) in found.items()} == {
        ("probe", "rgb", "mean"): 3 * CLIPS // 2,
        ("knn", "rgb", "0"): CLIPS // 2,
    }
    assert {key[3] for key in found} == {"reproduce/accuracy", "reproduce/balanced_accuracy"}
    assert "no: of 6123 clips" in shown and "no: of 2222 clips" in shown
    assert "not done:\nfrozen RGB, zero-shot: daa: no class texts in prompt set 'sentence'" in shown


@pytest.mark.slow
def test_alignments_are_trained_by_the_recipes_once_and_scored_alone_and_fused(tmp_path, capsys):
    bank = make_bank(tmp_path / "bank", whole=True)
    told = {"bank": str(bank.path), "only": "best mix", "train": {"epochs": 2, "batch": 8}}
    reproduce("cmvra", **told)
    found = scores_of(bank)
    four = "rgb + ir + depth + skeleton"
    wanted = [("probe", name) for name in ("rgb", "ir", "depth", "skeleton")] + [("fuse", four)]
    assert {key[:3] for key in found} == {(*one, split) for one in wanted for split in ("CS", "CV")}
    assert "70.8" in capsys.readouterr().out
    runs = bank.sql("SELECT config ->> 'protocol' AS protocol FROM runs WHERE command = 'align' ORDER BY 1")
    assert runs["protocol"].to_pylist() == ["cross-subject-raw", "cross-view-raw"]  # one for both tasks
    probed = bank.sql(
        "SELECT DISTINCT config ->> 'checkpoint' AS c FROM runs WHERE command = 'evaluate probe'"
    )
    assert all(name.startswith("run:") for name in probed["c"].to_pylist())


def interrupted(bank: Bank, monkeypatch, told) -> str:
    """The id of an alignment that `reproduce` began, and that stopped after its first epoch."""

    def stop(epochs):
        def after(row):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

        return after

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("align.train.progress", stop)
        reproduce("cmvra", **told)
    ((run_id, status),) = alignments(bank, "run_id, status")
    assert status != "done"
    return run_id


def alignments(bank: Bank, columns: str) -> list[tuple]:
    query = f"SELECT {columns} FROM runs WHERE command = 'align' ORDER BY started_at"
    return [tuple(row.values()) for row in bank.sql(query).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_alignment_is_continued_or_where_it_cannot_be_done_anew(
    tmp_path, monkeypatch, capsys, changed
):
    bank = make_bank(tmp_path / "bank", whole=True)
    loop = {"epochs": 3, "batch": 8, "checkpoint_seconds": 0}
    told = {"bank": str(bank.path), "only": "best mix,fuse", "train": loop}
    first = interrupted(bank, monkeypatch, told)
    if changed:  # as torchrun's would be
        path = bank.path / "runs" / first / "config.json"
        record = json.loads(path.read_text())
        record["training"]["processes"] = 4
        path.write_text(json.dumps(record))
    assert reproduce("cmvra", **told) in (0, None)
    (_, *after) = alignments(bank, "config ->> 'resumed_from', config ->> 'protocol', status")
    assert [row[1:] for row in after] == [("cross-subject-raw", "done"), ("cross-view-raw", "done")]
    assert (after[0][0] or "").endswith(first) is not changed and after[1][0] is None
    assert ("aligned anew" in capsys.readouterr().err) is changed


def test_features_added_since_make_a_recorded_run_stale(tmp_path, capsys):
    bank = make_bank(tmp_path / "bank")
    told = {"bank": str(bank.path), "only": "probe,frozen", "like": "ntu"}
    reproduce("cmvra", **told)
    spec = FeatureSpec("clip-vip-b16-random", {"name": "clip-vip-b16-random"})
    bank.register("synthetic", clips=pa.table({"clip_id": ["new"], "label": pa.array([0], pa.int32())}))
    with bank.writer("synthetic", "rgb", spec, [FieldSpec("embedding", 1, WIDTH)]) as writer:
        writer.add("new", 0, {"embedding": np.zeros((1, 1, WIDTH))}, np.zeros(1))
    capsys.readouterr()
    reproduce("cmvra", **told)
    assert "recorded as" not in capsys.readouterr().err


def test_a_comparable_figure_has_a_difference_with_an_interval():
    one = Experiment("frozen RGB", "base", "probe", {"rgb": {"CS": 53.8}}, needs={"rgb": "clip-vip-b16"})
    line = Line(one, "accuracy", "rgb", "CS", 53.8, Score("accuracy", 0.545, 16560, 0.537, 0.553))
    assert line.row()["difference"] == "+0.7 [-0.1, +1.5]" and line.row()["comparable"] == "yes"
    aligned = Experiment("pairwise", "base", "probe", {"rgb": {"CS": 53.9}}, recipe="pairwise")
    assert Line(aligned, "accuracy", "rgb", "CS", 53.9, line.ours).comparable().startswith("in part")
    apart = Line(one, "accuracy", "rgb", "CS", 53.8, line.ours, "random weights")
    assert apart.row()["difference"] == "" and apart.row()["comparable"] == "no: random weights"


def test_the_mean_of_independent_splits_is_surer_than_one():
    """Three splits of half-width 3: the mean's is 3 / sqrt(3)."""
    scores = [Score("accuracy", value, 100, value - 0.03, value + 0.03) for value in (0.5, 0.6, 0.7)]
    mean = mean_score(scores)
    assert (mean.value, mean.n) == (pytest.approx(0.6), 300)
    assert (mean.low, mean.high) == (pytest.approx(0.6 - 0.03 / 3**0.5), pytest.approx(0.6 + 0.03 / 3**0.5))
