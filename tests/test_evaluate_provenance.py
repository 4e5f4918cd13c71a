"""What a number rests on is told apart: raw or aligned, where, supervised by what, under which setting."""

from types import SimpleNamespace

from evaluate.provenance import kind, provenance, setting, told


def source(dataset="ntu", aligned_on=None, supervision=(), run="r1"):
    alignment = None if aligned_on is None else SimpleNamespace(config={"dataset": aligned_on})
    name = "raw" if aligned_on is None else f"aligned {run}"
    return SimpleNamespace(dataset=dataset, alignment=alignment, name=name, supervision=list(supervision))


def test_raw_features_rest_on_nothing() -> None:
    assert provenance([source()]) == {"source": "raw", "aligned_on": None, "supervision": []}
    assert told([source()]) == "raw"
    tuned = told(
        [source(supervision=("labels",))]
    )  # stored features of an encoder that was trained end to end
    assert tuned == "raw; SUPERVISED: the encoder was trained with these class names or labels"


def test_class_names_are_said_aloud_and_whose_they_are() -> None:
    assert told([source(aligned_on="ntu", supervision=("captions",))]) == (
        "aligned r1; the checkpoint was supervised by captions"
    )
    assert told([source(aligned_on="ntu", supervision=("labels",))]) == (
        "aligned r1; SUPERVISED: the checkpoint was trained with these class names or labels"
    )
    assert told([source("daa", "ntu", ("labels",))]) == (
        "aligned r1 on ntu; SUPERVISED: the checkpoint was trained with the class names or labels of ntu"
    )


def test_several_checkpoints_are_told_together() -> None:
    """One of them was told the labels: so was their average."""
    both = [source(aligned_on="ntu"), source(aligned_on="ntu120", supervision=("labels",), run="r2")]
    found = {"source": "aligned r1 aligned r2", "aligned_on": "ntu, ntu120", "supervision": ["labels"]}
    assert provenance(both) == found


def test_other_settings_are_other_kinds() -> None:
    plain = {"modality": "depth", "source": "aligned r1", "aligned_on": "daa", "chance": 0.1}
    assert kind(plain) == kind({**plain, "source": "aligned r2", "chance": 0.2})
    others = [
        {"shots": 5},
        {"aligned_on": "ntu"},
        {"supervision": ["labels"]},
        {"source": "raw"},
        {"over": "x"},
    ]
    assert len({kind(plain), *(kind({**plain, **other}) for other in others)}) == 1 + len(others)


def test_a_setting_is_told_where_it_is_not_the_usual_one() -> None:
    assert setting({"modality": "depth", "learn_from": "depth", "shots": None, "classes": "all"}) == ""
    told = {"modality": "ir", "learn_from": "depth", "shots": 5, "classes": "part", "prompt_set": "words"}
    assert setting(told) == "words, 5 shots, learnt from depth, among the part's classes"
    assert setting({"modality": "ir", "among": "depth", "neighbours": 5}) == "5 nearest, among depth"
