"""Several runs of one feature set: none does what another did."""

from extract_toys import extract, write_corpus

from extract.rivals import Rivals
from store.commit import FeatureSet
from store.spec import FeatureSpec


def test_runs_of_one_feature_set_start_at_different_ends_and_skip_what_others_did(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    bank = extract(corpus, tmp_path / "bank", where="label = 0")
    spec = FeatureSpec.from_json(bank.sql("SELECT spec::VARCHAR s FROM feature_sets")["s"][0].as_py())
    owner = FeatureSet("toy", "rgb", spec)
    config = {"dataset": "toy", "modality": "rgb", "feature_set": spec.name}

    def rivals(run):
        return Rivals(bank, owner, ("tokens", "cls"), 1, run.id, look_seconds=0.0)

    with bank.record_run("extract", config) as first, bank.record_run("extract", config) as second:
        with bank.record_run("extract", config | {"modality": "depth"}):
            pass
        assert rivals(second).order(4) == [3, 2, 1, 0]
        with bank.record_run("extract", config) as third:
            assert rivals(third).order(8) == [4, 5, 6, 7, 0, 1, 2, 3]
            with bank.record_run("extract", config) as fourth:
                assert rivals(fourth).order(8) == [2, 3, 4, 5, 6, 7, 0, 1]
        labels = dict(zip(*bank.sql("SELECT clip_id, label FROM clips").to_pydict().values(), strict=True))
        mine = rivals(first)
        assert {clip: mine.has_done(clip, 0) for clip in labels} == {
            c: label == 0 for c, label in labels.items()
        }
    with bank.record_run("extract", config) as alone:
        mine = rivals(alone)
        assert mine.order(4) == [0, 1, 2, 3]
        assert not any(mine.has_done(clip, 0) for clip in labels)
