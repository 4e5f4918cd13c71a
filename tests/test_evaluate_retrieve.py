"""`evaluate retrieve`: a naive ranking agrees in every direction; chance, ties, leakage and errors."""

import json

import numpy as np
import pyarrow as pa
import pytest
from evaluate_bank import aligned_bank, joint_bank, metrics_of, trained

import align
from evaluate.examples import spread
from evaluate.index import unit
from evaluate.leakage import LeakageError
from evaluate.metrics import first_relevant, retrieval_metrics
from evaluate.ranking import Options, outcome, search
from evaluate.retrieve import load_sides, retrieve
from evaluate.sides import Side, caption_side, clip_side, label_side
from evaluate.source import EvaluateError, Source, open_sources
from store.errors import FrameBankError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


@pytest.fixture(scope="module")
def embedded(toy):
    """Test clips of two modalities: ids, labels and unit embeddings, without `evaluate`'s own path."""
    bank, checkpoint = toy
    alignment = align.load(checkpoint, bank.path)
    found = {}
    for modality in ("depth", "inertial"):
        selection = bank.select("toy", modality, protocol="cross-subject", part="test")
        found[modality] = (selection.items, selection.labels, alignment.embed(modality, selection))
    return bank, alignment, found


def recorded(bank, query: str, gallery: str) -> dict[str, float]:
    rows = metrics_of(bank, "evaluate retrieve")
    return {
        row["name"].removeprefix("retrieve/"): row["value"]
        for row in rows
        if (row["detail"]["query"], row["detail"]["gallery"]) == (query, gallery)
        and row["name"] not in ("retrieve/mAP", "retrieve/nDCG")
    }


def test_by_clip_equals_a_naive_ranking(embedded) -> None:
    bank, alignment, found = embedded
    retrieve(str(bank.path), checkpoint=str(alignment.directory))
    (asked, _, queries), (there, _, gallery) = found["inertial"], found["depth"]
    relevant = asked[:, None] == there[None]
    answered = relevant.any(1)
    assert (~answered).sum() == 10  # every fifth clip has no depth: nothing could answer it
    naive = first_relevant(queries[answered] @ gallery.T, relevant[answered], 1e-6)
    assert recorded(bank, "inertial", "depth") == pytest.approx(retrieval_metrics(naive))


def test_by_label_equals_a_naive_ranking_without_the_clip_itself(embedded) -> None:
    bank, alignment, found = embedded
    retrieve(str(bank.path), checkpoint=str(alignment.directory), by="label")
    items, labels, vectors = found["inertial"]
    scores = vectors @ vectors.T
    ranks = []
    for row in range(len(items)):
        others = np.arange(len(items)) != row
        same = (labels == labels[row])[None, others]
        ranks.append(float(first_relevant(scores[row : row + 1, others], same, 1e-6).expected()[0]))
    ours = recorded(bank, "inertial", "inertial")
    assert ours["MeanR"] == pytest.approx(np.mean(ranks))
    assert ours["R@1"] == pytest.approx(np.mean(np.array(ranks) == 1))


def test_a_clip_in_another_modality_counts_unless_told_otherwise(embedded) -> None:
    bank, alignment, found = embedded
    (asked, labels, queries), (there, classes, gallery) = found["inertial"], found["depth"]
    scores, right = queries @ gallery.T, labels[:, None] == classes[None]
    own = asked[:, None] == there[None]
    where = {"checkpoint": str(alignment.directory), "by": "label", "query": "inertial", "gallery": "depth"}
    retrieve(str(bank.path), **where)
    naive = retrieval_metrics(first_relevant(scores, right, 1e-6))
    assert recorded(bank, "inertial", "depth") == pytest.approx(naive)
    retrieve(str(bank.path), **where, other_clips_only=True)
    apart = retrieval_metrics(first_relevant(np.where(own, -9, scores), right & ~own, 1e-6))
    assert recorded(bank, "inertial", "depth") == pytest.approx(apart)


def test_captions_every_phrasing_is_a_query_and_any_of_them_an_answer(embedded) -> None:
    bank, alignment, found = embedded
    retrieve(str(bank.path), checkpoint=str(alignment.directory), query="text,depth", gallery="depth,text")
    items, _, gallery = found["depth"]
    rows = bank.sql("SELECT DISTINCT text, clip_id FROM captions JOIN texts USING (text_id)").to_pylist()
    texts = sorted({row["text"] for row in rows})
    pairs = {(row["text"], row["clip_id"]) for row in rows}
    relevant = np.array([[(text, clip) in pairs for clip in items] for text in texts])
    assert len(texts) == 12 and relevant.sum(1).min() > 1  # four classes in three phrasings, many clips each
    queries = alignment.embed_texts(bank.texts(texts))
    naive = retrieval_metrics(first_relevant(queries @ gallery.T, relevant, 1e-6))
    assert recorded(bank, "text", "depth") == pytest.approx(naive)
    naive = retrieval_metrics(first_relevant(gallery @ queries.T, relevant.T, 1e-6))
    assert recorded(bank, "depth", "text") == pytest.approx(naive)


def test_class_texts_answer_their_class(embedded) -> None:
    bank, alignment, found = embedded
    retrieve(str(bank.path), checkpoint=str(alignment.directory), by="label", query="depth", gallery="text")
    _, labels, queries = found["depth"]
    names = ["wave", "kick", "clap", "sit"]
    texts = alignment.embed_texts(bank.texts(names))
    naive = retrieval_metrics(first_relevant(queries @ texts.T, labels[:, None] == np.arange(4), 1e-6))
    assert recorded(bank, "depth", "text") == pytest.approx(naive)


def test_what_is_recorded_says_what_it_rests_on(toy, capsys) -> None:
    bank, checkpoint = toy
    retrieve(str(bank.path), checkpoint=checkpoint)
    out = capsys.readouterr().out
    assert "toy, cross-subject test; right = same clip" in out
    assert "supervised by captions" in out
    assert "read 4 feature sets from the bank" in out
    rows = metrics_of(bank, "evaluate retrieve")
    assert len({(row["detail"]["query"], row["detail"]["gallery"]) for row in rows}) == 12
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["detail"]["supervision"] == ["captions"]
    one = next(
        row for row in rows if row["detail"]["query"] == "skeleton" and row["detail"]["gallery"] == "depth"
    )
    assert (one["n"], one["detail"]["gallery_size"], one["detail"]["unanswered"]) == (38, 38, 10)


def test_examples_are_kept_for_the_report(toy) -> None:
    bank, checkpoint = toy
    retrieve(str(bank.path), checkpoint=checkpoint, query="skeleton", gallery="inertial")
    folder = bank.sql(
        "SELECT directory FROM runs WHERE command = 'evaluate retrieve' ORDER BY started_at"
    ).to_pylist()
    entries = json.loads((bank.path / folder[-1]["directory"] / "examples.json").read_text())
    assert len(entries) == 6
    assert [entry["rank"] for entry in entries] == sorted(entry["rank"] for entry in entries)
    for entry in entries:
        rights = [place for place, result in enumerate(entry["results"]) if result["right"]]
        assert all(entry["results"][place]["item"] == entry["query_item"]["item"] for place in rights)
        assert (rights == [int(entry["rank"]) - 1]) if entry["rank"] <= 6 else not rights
        scores = [result["score"] for result in entry["results"]]
        assert scores == sorted(scores, reverse=True)


def test_examples_are_spread_from_best_to_worst() -> None:
    ranks = np.array([5.0, 1, 1, 9, 1, 3, 7])
    assert ranks[spread(ranks, 3)].tolist() == [1, 3, 9]
    assert ranks[spread(ranks, 99)].tolist() == [1, 1, 1, 3, 5, 7, 9]


# Chance, and several checkpoints


@pytest.mark.parametrize("by", ["clip", "label"])
def test_a_collapsed_model_is_at_chance_in_every_direction(toy, by) -> None:
    bank, checkpoint = toy
    source = open_sources(bank.path, None, None, checkpoint)[0]
    sides = load_sides(source, None, None, by, "test", None)
    captions = source.captions(sides["skeleton"].items)
    flat = {
        name: Side(name, side.items, side.labels, unit(np.ones((len(side), 7))), "flat")
        for name, side in sides.items()
    }
    for one in flat.values():
        for other in flat.values():
            if one.modality == other.modality == "text" or (one is other and by == "clip"):
                continue
            asked = search(one, other, by, captions, False)
            scores = outcome([source], [asked], Options(by)).scores
            for score in scores:
                assert score.value == pytest.approx(score.detail["chance"]), (one.modality, other.modality)


def test_checkpoints_are_averaged(toy) -> None:
    bank, first = toy
    second = trained(bank, seed=3, modalities="inertial,depth")
    found = []
    for given in (first, second, f"{first}, {second}"):
        retrieve(str(bank.path), checkpoint=given, query="inertial", gallery="depth")
        found.append(recorded(bank, "inertial", "depth"))
    for name, value in found[2].items():
        assert value == pytest.approx((found[0][name] + found[1][name]) / 2), name
    assert len(metrics_of(bank, "evaluate retrieve")[0]["detail"]["each"]) == 2


# Raw features


def test_raw_features_are_searched_within_a_modality(toy, capsys) -> None:
    bank, _ = toy
    retrieve(str(bank.path), by="label")
    rows = metrics_of(bank, "evaluate retrieve")
    assert {(row["detail"]["query"], row["detail"]["gallery"]) for row in rows} == {
        ("depth", "depth"), ("inertial", "inertial"), ("skeleton", "skeleton"),
    }  # fmt: skip
    assert "; raw; " in capsys.readouterr().out


def test_raw_features_of_one_joint_space_are_searched_across(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    retrieve(str(bank.path), by="label", query="text", gallery="rgb")
    assert recorded(bank, "text", "rgb")["R@1"] == 1.0
    retrieve(str(bank.path), by="label", query="text", gallery="rgb", prompt_set="photo")
    assert metrics_of(bank, "evaluate retrieve")[0]["n"] == 4


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"query": "depth", "gallery": "skeleton"},
            "pass --checkpoint latest after `python -m align --modalities depth,skeleton",
        ),
        ({}, "a clip always finds itself; use --by label"),
        ({"query": "depth", "gallery": "depth"}, "depth to depth: a clip always finds itself"),
        ({"query": "rgb", "gallery": "depth"}, "no rgb features of toy; python -m extract"),
        ({"by": "label", "query": "text", "gallery": "depth", "prompt_set": "x"}, "the prompt sets: names"),
        ({"by": "label", "index": "tree"}, "no index named 'tree'; there are: exact, flat"),
    ],
)
def test_what_cannot_be_searched_says_why(toy, options, message) -> None:
    with pytest.raises(FrameBankError, match=message):
        retrieve(str(toy[0].path), **options)


def test_training_clips_are_refused(toy) -> None:
    bank, checkpoint = toy
    with pytest.raises(LeakageError, match="48 of the 48 clips to score were seen in training"):
        retrieve(str(bank.path), checkpoint=checkpoint, part="train")
    with pytest.raises(LeakageError, match="48 of the 96 clips to score"):
        retrieve(str(bank.path), checkpoint=checkpoint, protocol="none")


def test_lost_clips_count_as_misses_where_the_benchmark_does_so(toy, capsys) -> None:
    bank, checkpoint = toy
    retrieve(str(bank.path), checkpoint=checkpoint, query="inertial", gallery="depth")
    plain = recorded(bank, "inertial", "depth")
    retrieve(str(bank.path), checkpoint=checkpoint, query="inertial", gallery="depth", missing="miss")
    rows = [row for row in metrics_of(bank, "evaluate retrieve") if row["name"] == "retrieve/R@1"]
    assert (rows[0]["n"], rows[0]["detail"]["missing"]) == (48, 10)
    strict = recorded(bank, "inertial", "depth")
    assert strict["R@1"] == pytest.approx(plain["R@1"] * 38 / 48)
    assert (strict["MedR"], strict["MeanR"]) == (plain["MedR"], plain["MeanR"])
    with pytest.raises(EvaluateError, match="--missing miss counts lost clips, but right is the same label"):
        retrieve(str(bank.path), checkpoint=checkpoint, by="label", missing="miss")


def test_other_conventions_stand_beside_ours(toy, capsys) -> None:
    bank, checkpoint = toy
    retrieve(str(bank.path), checkpoint=checkpoint, query="inertial", gallery="depth", convention="clip-vip")
    assert "ties counted as clip-vip does" in capsys.readouterr().out
    rows = [row for row in metrics_of(bank, "evaluate retrieve") if row["name"] == "retrieve/R@5"]
    assert [row["detail"].get("convention") for row in rows] == [None, "clip-vip"]
    assert rows[0]["value"] == pytest.approx(rows[1]["value"])  # nothing ties here


def test_rescored_results_are_those_of_the_whole_matrix_and_say_so(embedded, capsys) -> None:
    from evaluate.rescoring import dual_softmax

    bank, alignment, found = embedded
    options = {"checkpoint": str(alignment.directory), "query": "inertial", "gallery": "depth"}
    retrieve(str(bank.path), rescore="dual-softmax", **options)
    assert "TRANSDUCTIVE: dual-softmax over all queries" in capsys.readouterr().out
    (asked, _, queries), (there, _, gallery) = found["inertial"], found["depth"]
    relevant = asked[:, None] == there[None]
    kept = relevant.any(1)
    naive = first_relevant(dual_softmax(queries[kept] @ gallery.T), relevant[kept], 1e-6)
    assert recorded(bank, "inertial", "depth") == pytest.approx(retrieval_metrics(naive))
    assert metrics_of(bank, "evaluate retrieve")[0]["detail"]["transductive"] == "dual-softmax"


def test_only_the_captions_that_the_protocol_counts_are_asked(tmp_path) -> None:
    """As in MSR-VTT's 1k-A: the test part has one caption a clip of its own; training has the others."""
    import pyarrow as pa

    from store.bank import Bank

    bank = Bank.open(tmp_path / "bank", create=True)
    bank.register(
        "talks",
        config={"caption_sources": {"1k-A": {"test": ["own"]}}},
        clips=pa.table({"clip_id": ["a", "b"]}),
        splits=pa.table({"protocol": ["1k-A", "1k-A"], "clip_id": ["a", "b"], "part": ["test", "test"]}),
        captions=pa.table(
            {"clip_id": ["a", "a", "b"], "text": ["one", "two", "three"], "source": ["own", "crowd", "own"]}
        ),
    )
    source = Source(bank, "talks", "1k-A")
    assert source.captions(["a", "b"], "test") == {"a": ["one"], "b": ["three"]}
    assert source.captions(["a", "b"], "train") == {"a": ["one", "two"], "b": ["three"]}
    assert source.captions(["a"]) == {"a": ["one", "two"]}


def test_generated_captions_are_no_ground_truth_unless_named(tmp_path) -> None:
    import pyarrow as pa

    from store.bank import Bank
    from store.captions import Captioned, add_captions

    bank = Bank.open(tmp_path / "bank", create=True)
    bank.register(
        "talks",
        clips=pa.table({"clip_id": ["a", "b"]}),
        captions=pa.table({"clip_id": ["a", "b"], "text": ["own a", "own b"]}),
    )
    add_captions(bank.catalog, "talks", "llava-next@1", [Captioned("a", ["made up"])])
    source = Source(bank, "talks", None)
    assert source.captions(["a", "b"], "test") == {"a": ["own a"], "b": ["own b"]}
    assert source.captions(["a", "b"], "test", "llava-next@1") == {"a": ["made up"]}


def test_a_dataset_without_captions_says_what_to_do(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    with pytest.raises(EvaluateError, match="no captions to search by clip; use --by label"):
        retrieve(str(bank.path), query="text", gallery="rgb")


def test_sides_are_unit_vectors_of_what_they_name(toy) -> None:
    bank, checkpoint = toy
    source = open_sources(bank.path, None, None, checkpoint)[0]
    assert isinstance(source, Source)
    depth = clip_side(source, "depth", "test")
    captions = caption_side(source, source.captions(depth.items))
    names = label_side(source)
    for side in (depth, captions, names):
        np.testing.assert_allclose(np.linalg.norm(side.vectors, axis=1), 1, atol=1e-5)
    assert sorted(zip(names.labels.tolist(), names.items, strict=True)) == [
        (0, "wave"), (1, "kick"), (2, "clap"), (3, "sit"),
    ]  # fmt: skip


def test_clips_that_share_no_label_cannot_find_each_other(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    source = open_sources(bank.path, None, None, None)[0]
    four = clip_side(source, "rgb", "test").keep(np.arange(4))
    with pytest.raises(EvaluateError, match="no two of 4 rgb clips have one label"):
        search(four, four, "label", {}, False)


def test_an_approximate_index_is_labelled(toy, capsys) -> None:
    """And, visiting all of its one list here, finds what the flat one finds."""
    options = {"by": "label", "query": "depth", "gallery": "depth"}
    retrieve(str(toy[0].path), **options)
    flat = capsys.readouterr().out.splitlines()[-4:]
    retrieve(str(toy[0].path), **options, index="ivf-flat")
    out = capsys.readouterr().out
    assert "APPROXIMATE: by ivf-flat" in out
    assert out.splitlines()[-3].split()[:10] == flat[-3].split()[:10]
    assert metrics_of(toy[0], "evaluate retrieve")[0]["detail"]["index"] == "ivf-flat"


def test_many_right_answers_are_scored_by_precision_and_gain(toy, capsys) -> None:
    """mAP by its definition on the full matrix, a clip's own row left out; chance is a collapsed model's."""
    bank = toy[0]
    retrieve(str(bank.path), by="label", query="depth", gallery="depth")
    assert "mAP" in capsys.readouterr().out
    found = {row["name"]: row for row in metrics_of(bank, "evaluate retrieve")}
    (source,) = open_sources(bank.path, None, None, None)
    side = clip_side(source, "depth", "test")
    precisions = []
    for row, label in enumerate(side.labels):
        others = np.arange(len(side)) != row
        right = (side.labels == label)[others][np.argsort(-(side.vectors @ side.vectors[row])[others])]
        places = np.flatnonzero(right) + 1
        precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    assert found["retrieve/mAP"]["value"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found["retrieve/mAP"]["low"] < found["retrieve/mAP"]["value"] < found["retrieve/mAP"]["high"]
    assert 0.2 < found["retrieve/mAP"]["detail"]["chance"] < 0.35
    assert 0.9 < found["retrieve/nDCG"]["value"] < 1
    assert found["retrieve/R@50"]["value"] == 1


def test_clips_of_one_video_are_averaged(tmp_path, capsys) -> None:
    """Twenty videos of two clips each; c38 and c39 are of none. Naive: means by a loop."""
    bank = joint_bank(tmp_path / "bank")
    clips = bank.sql("SELECT clip_id, label, label_name FROM clips")
    names = clips["clip_id"].to_pylist()
    video = {name: f"v{int(name[1:]) // 2}" for name in names[:38]} | {name: name for name in names[38:]}
    attributes = [json.dumps({"video": video[name]} if name < "c38" else {}) for name in names]
    texts = dict(zip(names, clips["label_name"].to_pylist(), strict=True))
    captions = pa.table({"clip_id": names, "text": list(texts.values())})
    bank.register("joint", clips=clips.append_column("attributes", pa.array(attributes)), captions=captions)
    retrieve(str(bank.path), query="rgb", gallery="text", average="video")
    (source,) = open_sources(bank.path, None, None, None, part=None)
    side = clip_side(source, "rgb", "test")
    ids = sorted(set(video.values()))
    means = unit(np.stack([
        np.mean([side.vectors[row] for row, item in enumerate(side.items) if video[item] == one], axis=0)
        for one in ids
    ]))  # fmt: skip
    words = sorted(set(texts.values()))
    told = {(video[name], texts[name]) for name in names}
    right = np.array([[(one, word) in told for word in words] for one in ids])
    naive = first_relevant(means @ unit(source.texts(words)).T, right, 1e-6)
    assert recorded(bank, "rgb", "text") == pytest.approx(retrieval_metrics(naive))
    assert metrics_of(bank, "evaluate retrieve")[0]["n"] == 21
    with pytest.raises(EvaluateError, match=r"--average film: no clip of joint has it; .*video"):
        retrieve(str(bank.path), query="rgb", gallery="text", average="film")
