import hashlib

import numpy as np
import pytest

from store.spec import FeatureSpec, FieldSpec, SpecError, canonical_json, digest, resolved_spec

SPACE = {"name": "clip", "revision": 2, "weights": "abc", "resize": [224, 224]}
READING = {"sampling": {"frames": 12}, "precision": "fp32"}


def test_digest_is_the_sha256_of_canonical_json():
    text = '{"a":[1,2.5,null],"b":"ü"}'
    assert canonical_json({"b": "ü", "a": (1.0, 2.5, None)}) == text
    assert digest({"b": "ü", "a": (1.0, 2.5, None)}) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_equal_configurations_have_one_name_however_they_were_written():
    one = FeatureSpec("clip", SPACE, READING)
    other = FeatureSpec(
        "clip",
        {"resize": (224.0, np.int64(224)), "weights": "abc", "revision": np.float32(2), "name": "clip"},
        {"precision": "fp32", "sampling": {"frames": 12.0}},
    )
    assert one == other and one.name == other.name and hash(one) == hash(other)
    assert one.name == f"clip@{one.fingerprint}" and len(one.fingerprint) == 12
    assert not one.differences(other)


def test_reading_changes_the_fingerprint_but_not_the_space():
    one, other = FeatureSpec("clip", SPACE, READING), FeatureSpec("clip", SPACE, {**READING, "fps": 4})
    assert one.space_digest == other.space_digest and one.fingerprint != other.fingerprint
    third = FeatureSpec("clip", {**SPACE, "revision": 3}, READING)
    assert third.space_digest != one.space_digest and third.fingerprint != one.fingerprint


def test_true_and_one_are_different_values():
    assert digest({"flip": True}) != digest({"flip": 1})


def test_differences_name_each_value_once():
    one = FeatureSpec("clip", SPACE, READING)
    other = FeatureSpec("clip", {**SPACE, "weights": "xyz"}, {"sampling": {"fps": 4}, "precision": "fp32"})
    assert one.differences(other) == [
        ("reading.sampling.fps", "(absent)", 4),
        ("reading.sampling.frames", 12, "(absent)"),
        ("space.weights", "abc", "xyz"),
    ]
    assert one.differences(other) == [(key, a, b) for key, b, a in other.differences(one)]


def test_json_round_trip():
    one = FeatureSpec("clip", SPACE, READING)
    assert FeatureSpec.from_json(canonical_json(one.as_json())) == one
    assert FeatureSpec.from_json(one.as_json()).name == one.name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1, 2}, object(), b"x"])
def test_what_has_no_canonical_form_is_refused_by_name(value):
    with pytest.raises(SpecError, match=r"reading\.a\.b"):
        FeatureSpec("clip", SPACE, {"a": {"b": value}})


@pytest.mark.parametrize("name", ["", "CLIP", "a b", "a/b", "a@b", "../x"])
def test_encoder_names_are_safe(name):
    with pytest.raises(SpecError, match="accepted are the characters"):
        FeatureSpec(name, SPACE)


def test_precision_must_be_resolved_before_it_names_anything():
    auto = FeatureSpec("clip", SPACE, {"precision": "auto"})
    with pytest.raises(SpecError, match="resolve_precision"):
        resolved_spec(auto)
    assert resolved_spec(auto.with_precision("bf16")).precision == "bf16"


@pytest.mark.parametrize("wrong", [("", 1, 1), ("cls", 0, 8), ("cls", 1, 0), ("cls", 1, 8, "float64")])
def test_field_shapes_make_sense(wrong):
    with pytest.raises(SpecError, match="field"):
        FieldSpec(*wrong)
