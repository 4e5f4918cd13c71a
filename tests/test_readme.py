"""The README's SQL, run as it stands there, against answers counted by hand; the options it names."""

import re
import subprocess
import sys

import pyarrow as pa
import pytest
import store_toy as toy
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
# In the README's order: what the toy bank below has.
ANSWERS = {
    "clips of each subject and camera": [("0", "0", 2), ("1", "1", 1), ("2", "0", 1), ("3", "1", 1)],
    "what is encoded": [
        ("_texts", "text", None, None, 0, 3, 0.0),
        ("toy", "depth", toy.spec().name, "cls", 3, 5, 60.0),
        ("toy", "depth", toy.spec().name, "tokens", 3, 5, 60.0),
        ("toy", "ir", None, None, 0, 4, 0.0),
    ],
    "commonest errors": [("decode", "no frames", 2)],
    "best run": [
        ("probe/accuracy", 0.75, 0.7, 0.8, 40, "depth", "ntu", "labels", 5, "toy", "cross-subject", "test"),
        ("probe/accuracy", 0.5, 0.4, 0.6, 40, "depth", None, "", None, "toy", "cross-subject", "test"),
    ],
    "clips without depth": [("toy", "clip 005")],
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Five clips with depth, three of them encoded, two failed; two scored runs."""
    bank = toy.registered(tmp_path_factory.mktemp("bank"), 5)
    both = pa.concat_tables([toy.media(5), toy.media(4, modality="ir")])
    bank.register(toy.DATASET, clips=toy.clips(5), media=both)
    with bank.writer(toy.DATASET, toy.MODALITY, toy.spec(), [toy.CLS, toy.TOKENS]) as writer:
        for clip in toy.clip_ids(3):
            toy.add(writer, clip)
        for clip in toy.clip_ids(5)[3:]:
            writer.fail(clip, "decode", "no frames")
    for value in (0.5, 0.75):
        config = {"dataset": toy.DATASET, "protocol": "cross-subject", "part": "test"}
        with bank.record_run("probe", config) as run:
            half = 0.1 if value == 0.5 else 0.05
            detail = {"modality": "depth", "aligned_on": None, "supervision": [], "shots": None}
            if value == 0.75:
                detail |= {"aligned_on": "ntu", "supervision": ["labels"], "shots": 5}
            run.metric("probe/accuracy", value, n=40, low=value - half, high=value + half, **detail)
    return bank


def test_five_questions_and_no_answer_forgotten():
    assert len(QUERIES) == len(ANSWERS) == 5


@pytest.mark.parametrize("number", range(5), ids=ANSWERS)
def test_the_readmes_questions_have_the_right_answers(bank, number):
    answer = list(ANSWERS.values())[number]
    if number == 4:
        bank.register("toy", clips=toy.clips(6), media=None)
    rows = [tuple(row.values()) for row in bank.sql(QUERIES[number]).to_pylist()]
    expected = [tuple(pytest.approx(v) if isinstance(v, float) else v for v in row) for row in answer]
    assert rows == expected


def test_the_readmes_options_exist():
    """Every `python -m ... --option` of the README is one that the command's --help knows."""
    commands = re.findall(r"python -m ((?:encoders|store|extract|align|evaluate)[\w.]*)([^\n`]*)", README)
    known: dict[str, str] = {}

    def help_of(words: tuple[str, ...]) -> str:
        key = " ".join(words)
        if key not in known:
            call = [sys.executable, "-m", *words, "--help"]
            result = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
            assert result.returncode == 0, f"{key}: {result.stderr}"
            known[key] = result.stdout
        return known[key]

    for module, rest in commands:
        called: tuple[str, ...] = (module,)
        for word in rest.split():
            if not re.fullmatch(r"[a-z\-]+", word) or "subcommands:" not in help_of(called):
                break
            assert re.search(rf"[{{,]{word}[,}}]", help_of(called)), f"{called} has no {word}"
            called = (*called, word)
        for option in re.findall(r"(--[a-z][a-z\-]*)", rest.split("#")[0]):
            assert option in help_of(called), f"{called} has no {option}"
