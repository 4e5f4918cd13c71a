"""YouCook2: look-alikes of the official files, and steps that are really cut out of their video."""

import numpy as np
import pytest
import yaml
from annotation_files import listed, parts, put, told, videos
from extract_toys import contents, extract, pattern
from media_files import write_video

from extract.datasets import DatasetError
from extract.datasets.clips import Media
from extract.datasets.youcook2 import YouCook2
from store import Bank


def step(segment, sentence=None, number=0):
    return {"segment": segment, "id": number} | ({"sentence": sentence} if sentence else {})


YOUCOOK2 = {
    "database": {
        "Train-_id_01": {
            "duration": 241.62,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [step([1, 2], "cut the bread "), step([2, 4], "toast it")],
            "video_url": "https://x",
        },
        "validation1": {
            "subset": "validation",
            "recipe_type": "201",
            "annotations": [step([47, 60], "pick the ends"), step([67, 89.5], "mix")],
        },
    }
}
YOUCOOK2_TEST = {"database": {"testingtest": {"subset": "testing", "annotations": [step([5, 7])]}}}


def youcook2(root):
    put(root, "annotations/youcookii_annotations_trainval.json", YOUCOOK2)
    put(root, "annotations/youcookii_annotations_test_segments_only.json", YOUCOOK2_TEST)
    put(root, "validation_youcook.csv", "end,start,task,text,video_id\n60,47,201,pick the ends,validation1\n")
    return root


def test_youcook2(tmp_path):
    adapter = YouCook2(videos(youcook2(tmp_path), "raw_videos/training/113/Train-_id_01.mkv"))
    clips = listed(adapter)
    assert list(clips) == [
        "Train-_id_01_1_2",
        "Train-_id_01_2_4",
        "validation1_47_60",
        "validation1_67_89.5",
        "testingtest_5_7",
    ]
    first = clips["Train-_id_01_1_2"]
    assert first.media["rgb"] == Media("raw_videos/training/113/Train-_id_01.mkv", "video")
    assert (first.start_seconds, first.end_seconds) == (1.0, 2.0)
    assert first.attributes == {"video": "Train-_id_01", "recipe_type": "113"}
    assert told(first) == [("cut the bread", "youcook2")]
    both = [("pick the ends", "youcook2"), ("pick the ends", "youcook2-retrieval")]
    assert told(clips["validation1_47_60"]) == both and clips["validation1_47_60"].media == {}
    assert told(clips["testingtest_5_7"]) == []
    assert parts(adapter) == {
        "official train": ["Train-_id_01_1_2", "Train-_id_01_2_4"],
        "retrieval train": ["Train-_id_01_1_2", "Train-_id_01_2_4"],
        "official val": ["validation1_47_60", "validation1_67_89.5"],
        "official test": ["testingtest_5_7"],
        "retrieval test": ["validation1_47_60"],
    }


def test_youcook2_test_list_alone(tmp_path):
    (youcook2(tmp_path) / "annotations" / "youcookii_annotations_trainval.json").unlink()
    adapter = YouCook2(tmp_path)
    assert parts(adapter) == {"official test": ["testingtest_5_7"], "retrieval test": ["validation1_47_60"]}
    note = (
        "no clips in official train, official val, retrieval train; not there: youcookii_annotations_trainval"
    )
    assert adapter.notes()[1].startswith(note)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"subset": "dev"}, r"database.a.subset is 'dev'; training or validation or testing is needed"),
        (
            {"annotations": [step([4, 4], "x")]},
            r"a.annotations\[0\].segment is \[4, 4\]; \[start, end\] in sec",
        ),
        ({"annotations": [step([-1, 4], "x")]}, r"annotations\[0\].segment\[0\] is -1; seconds from 0"),
        ({"annotations": [step(["1", 4], "x")]}, r"annotations\[0\].segment\[0\] is '1'; seconds from 0"),
        ({"annotations": [step([1, 4])]}, r"annotations\[0\] has no 'sentence', but id, segment; give the"),
        ({"annotations": {}}, r"trainval.json: database.a.annotations is \{\}; a list is needed"),
    ],
)
def test_faulty_youcook2(tmp_path, change, match):
    video = {"subset": "training", "annotations": [step([1, 2], "x")]} | change
    put(tmp_path, "youcookii_annotations_trainval.json", {"database": {"a": video}})
    with pytest.raises(DatasetError, match=match):
        listed(YouCook2(tmp_path))


@pytest.mark.parametrize(
    "row", ["60,x,201,pick,v", "60,60,201,pick,v", "60,47,201,pick,", "nan,47,201,pick,v"]
)
def test_faulty_youcook2_test_list(tmp_path, row):
    put(tmp_path, "validation_youcook.csv", f"end,start,task,text,video_id\n{row}\n")
    with pytest.raises(DatasetError, match=r"validation_youcook.csv, line 2: .* needed"):
        listed(YouCook2(tmp_path))


def test_steps_are_cut_out_of_their_video(tmp_path):
    """A video of 10 frames a second, whose frame k says so: each step's features are those of its span."""
    root = youcook2(tmp_path / "data")
    write_video(root / "Train-_id_01.mp4", 60, 10, pattern=lambda k: pattern(0, k % 40))
    config = {"name": "cooking", "adapter": "youcook2", "root": str(root)}
    config["modalities"] = {"rgb": {"encoder": "patches", "sampling": {"frames": "all"}}}
    path = tmp_path / "cooking.yaml"
    path.write_text(yaml.safe_dump(config))
    found = contents(extract(path, tmp_path / "bank"), "cooking")
    for clip_id, frames in (("Train-_id_01_1_2", range(10, 20)), ("Train-_id_01_2_4", range(20, 40))):
        values, times = found["cls", 0, clip_id]
        assert np.allclose(times, np.array(frames) / 10, atol=1e-3)
        tokens, _ = found["tokens", 0, clip_id]
        right = tokens.reshape(-1, 4, 4, 3)[:, :, 3].mean((1, 2)) * 255  # the half that tells the frame
        assert np.rint((right - 20) / 6).astype(int).tolist() == list(frames) and len(values) == len(frames)
    assert {clip_id for _, _, clip_id in found} == {"Train-_id_01_1_2", "Train-_id_01_2_4"}
    query = "SELECT modality, clips, encoded FROM coverage WHERE dataset = 'cooking' AND field = 'cls'"
    assert Bank.open(tmp_path / "bank").sql(query).to_pylist() == [
        {"modality": "rgb", "clips": 2, "encoded": 2}  # of five clips, two have their video
    ]
