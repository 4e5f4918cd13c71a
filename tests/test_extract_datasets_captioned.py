"""LSMDC, DiDeMo, ActivityNet, VATEX: look-alikes of the official files; what all benchmarks share."""

import numpy as np
import pytest
from annotation_files import listed, parts, put, told, videos
from media_files import write_sound

from extract.datasets import DATASETS, DatasetError, load_config, load_dataset
from extract.datasets.activitynet import ActivityNet
from extract.datasets.didemo import DiDeMo
from extract.datasets.lsmdc import LSMDC
from extract.datasets.vatex import VATEX

# ---- LSMDC

JUNO = "1004_Juno_00.00.32.072-00.00.33.605"
TED = "3077_TED_2_00.01.02.100-00.01.05.000"


def line(clip_id, text):
    return "\t".join([clip_id, "00.00.32.072", "00.00.33.605", "00.00.31.839", "00.00.33.839", text]) + "\n"


def test_lsmdc(tmp_path):
    put(
        tmp_path,
        "LSMDC16_annos_training.csv",
        line(JUNO, 'SOMEONE says "no", twice.') + line(JUNO, "She turns."),
    )
    put(tmp_path, "LSMDC16_annos_val.csv", line("0026_The_Big_Fish_1-2", "He fishes."))
    put(tmp_path, "LSMDC16_annos_test.csv", line(TED, "A bear.") + line('"3077_TED_2_5-6', "A bear again."))
    put(tmp_path, "LSMDC16_challenge_1000_publictect.csv", line(TED, "A bear."))
    adapter = LSMDC(videos(tmp_path, f"avi/1004_Juno/{JUNO}.avi", f"avi/3077_TED_2/{TED}.avi"))
    clips = listed(adapter)
    assert clips[JUNO].media["rgb"].path == f"avi/1004_Juno/{JUNO}.avi"
    assert clips[JUNO].start_seconds is None  # cut already: the times are those in the film
    assert told(clips[JUNO]) == [('SOMEONE says "no", twice.', "lsmdc"), ("She turns.", "lsmdc")]
    assert told(clips[TED]) == [("A bear.", "lsmdc"), ("A bear.", "lsmdc-retrieval")]
    assert clips[TED].attributes == {"film": "3077_TED_2"}
    assert parts(adapter) == {
        "official train": [JUNO],
        "retrieval train": [JUNO],
        "official val": ["0026_The_Big_Fish_1-2"],
        "retrieval val": ["0026_The_Big_Fish_1-2"],
        "official test": [TED, "3077_TED_2_5-6"],
        "retrieval test": [TED],
    }


@pytest.mark.parametrize("bad", [f"{JUNO}\tA bear.\n", line("Juno", "A bear."), line(JUNO, "A\tbear.")])
def test_faulty_lsmdc(tmp_path, bad):
    put(tmp_path, "LSMDC16_annos_val.csv", line(JUNO, "A bear.") + "\n" + bad)
    with pytest.raises(DatasetError, match=r"annos_val.csv, line 3: is .*; <film>_<times>, four times and a"):
        listed(LSMDC(tmp_path))


# ---- DiDeMo


def moment(video, text, *times):
    return {"annotation_id": 1, "description": text, "video": video, "times": list(times), "num_segments": 6}


BUG = "26292851@N04_4253489686_265c3c8051"


def test_didemo(tmp_path):
    told_bug = [
        moment(f"{BUG}.m4v", " a bug.", [4, 4], [0, 0], [4, 4]),
        moment("other_1.mov", "a cat", [0, 1]),
    ]
    put(tmp_path, "data/train_data.json", [*told_bug, moment(f"{BUG}.m4v", "it is kicked", [1, 3])])
    put(tmp_path, "data/test_data.json", [moment("third.v2", "a dog", [0, 0])])
    videos(tmp_path, f"train/{BUG}.m4v.mp4", "train/other_1.avi", "test/third.v2.mov")
    adapter = DiDeMo(tmp_path)
    clips = listed(adapter)
    assert {name: clip.media["rgb"].path for name, clip in clips.items()} == {
        BUG: f"train/{BUG}.m4v.mp4",
        "other_1": "train/other_1.avi",
        "third.v2": "test/third.v2.mov",
    }
    assert told(clips[BUG]) == [("a bug. it is kicked", "didemo-paragraph")]
    assert (clips[BUG].start_seconds, clips[BUG].attributes) == (None, {"file": f"{BUG}.m4v"})
    assert parts(adapter) == {"paragraph train": [BUG, "other_1"], "paragraph test": ["third.v2"]}
    clip = listed(DiDeMo(tmp_path, sentences=True, until_seconds=30))[BUG]
    assert (clip.start_seconds, clip.end_seconds) == (0, 30)
    assert told(clip)[1:] == [
        ("a bug.", "didemo-sentence", 20.0, 25.0),  # chunk 4, as two of three annotators have it
        ("it is kicked", "didemo-sentence", 5.0, 20.0),
    ]


def test_faulty_didemo(tmp_path):
    put(tmp_path, "val_data.json", [moment("a.mp4", "x", [3, 1])])
    with pytest.raises(
        DatasetError, match=r"val_data.json: \[0\].times is \[\[3, 1\]\]; \[first, last\] chunks"
    ):
        listed(DiDeMo(tmp_path, sentences=True))
    with pytest.raises(DatasetError, match=r"options.until_seconds: is 0; more than 0 is needed"):
        DiDeMo(tmp_path, until_seconds=0)
    put(tmp_path, "test_data.json", [moment("a.mp4", "x", [0, 1])])
    with pytest.raises(
        DatasetError, match=r"test_data.json: \[0\]: 'a' is in part 'test' of 'paragraph', but"
    ):
        listed(DiDeMo(tmp_path))


# ---- ActivityNet


def activitynet(root):
    event = {
        "duration": 10.5,
        "timestamps": [[0, 2.5], [9, 3]],
        "sentences": ["A man sits. ", " He gets up."],
    }
    put(root, "captions/train.json", {"v_one": event})
    put(root, "captions/val_1.json", {"v_two": event, "v_three": event | {"sentences": ["Snow falls.", ""]}})
    put(root, "captions/val_2.json", {"v_two": event | {"sentences": ["Again.", "And again."]}})
    return videos(root, "one.mkv", "v_two.mp4")


def test_activitynet(tmp_path):
    adapter = ActivityNet(activitynet(tmp_path))
    clips = listed(adapter)
    assert [clip.media["rgb"].path for clip in clips.values() if clip.media] == ["one.mkv", "v_two.mp4"]
    assert told(clips["v_one"]) == [("A man sits. He gets up.", "train")]
    assert told(clips["v_two"]) == [("A man sits. He gets up.", "val_1"), ("Again. And again.", "val_2")]
    assert told(clips["v_three"]) == [("Snow falls.", "val_1")]
    assert clips["v_two"].attributes == {"duration_seconds": 10.5} and clips["v_two"].end_seconds is None
    assert parts(adapter) == {
        "val_1 train": ["v_one"],
        "val_2 train": ["v_one"],
        "val_1 test": ["v_two", "v_three"],
        "val_2 test": ["v_two"],
    }
    assert adapter.caption_sources["val_2"] == {"train": ["train"], "test": ["val_2"]}
    sentences = told(listed(ActivityNet(tmp_path, sentences=True))["v_two"])
    assert sentences[1:3] == [
        ("A man sits.", "val_1-sentence", 0.0, 2.5),
        ("He gets up.", "val_1-sentence", 3.0, 9.0),
    ]


def test_faulty_activitynet(tmp_path):
    event = {"duration": 10.5, "timestamps": [[0, 2.5]], "sentences": ["A man sits.", "He gets up."]}
    put(tmp_path, "train.json", {"v_one": event})
    assert len(listed(ActivityNet(tmp_path))) == 1  # whole videos need no timestamps
    with pytest.raises(DatasetError, match=r"train.json: v_one: 2 sentences, but 1 timestamps"):
        listed(ActivityNet(tmp_path, sentences=True))
    put(tmp_path, "train.json", {"one": event})
    with pytest.raises(
        DatasetError, match=r"train.json: one: is no video id; `v_` and a YouTube id is needed"
    ):
        listed(ActivityNet(tmp_path))


# ---- VATEX

CUT, WHOLE, GONE = "Ptf_2VRj-V0_000122_000132", "a_b_c_d_e_f_000000_000010", "testingtest_000001_000011"


def vatex(root):
    train = [{"videoID": name, "enCap": ["One.", "Two."], "chCap": ["一"]} for name in (CUT, WHOLE)]
    put(root, "vatex_training_v1.0.json", train)
    put(root, "vatex_public_test_english_v1.1.json", [{"videoID": GONE, "enCap": ["Three."]}])
    put(root, "vatex_private_test_without_annotations.json", [{"videoID": "private_000001_000011"}])
    return videos(root, f"{CUT}.mp4", "whole/Ptf_2VRj-V0.mp4", "whole/a_b_c_d_e_f.mp4")


def test_vatex(tmp_path):
    adapter = VATEX(vatex(tmp_path))
    clips = listed(adapter)
    cut, whole, gone = clips[CUT], clips[WHOLE], clips[GONE]
    assert (cut.media["rgb"].path, cut.start_seconds, cut.end_seconds) == (f"{CUT}.mp4", None, None)
    assert (whole.media["rgb"].path, whole.start_seconds) == ("whole/a_b_c_d_e_f.mp4", 0)
    assert (whole.end_seconds, whole.attributes) == (10, {"video": "a_b_c_d_e_f"})
    assert gone.media == {} and told(gone) == [("Three.", "vatex-en")]
    assert told(cut) == [("One.", "vatex-en"), ("Two.", "vatex-en")]
    private = ["private_000001_000011"]
    assert parts(adapter) == {
        "official train": [CUT, WHOLE],
        "official test": [GONE],
        "official private-test": private,
    }
    assert told(listed(VATEX(tmp_path, language="zh"))[CUT]) == [("一", "vatex-zh")]


def test_faulty_vatex(tmp_path):
    put(tmp_path, "vatex_validation_v1.0.json", [{"videoID": "x_12_22", "enCap": []}])
    with pytest.raises(
        DatasetError, match=r"\[0\].videoID is 'x_12_22'; <YouTube id>_<start>_<end> is needed"
    ):
        listed(VATEX(tmp_path))
    put(tmp_path, "vatex_validation_v1.0.json", [{"videoID": GONE}])
    with pytest.raises(DatasetError, match=r"\[0\] has no 'enCap', but videoID"):
        listed(VATEX(tmp_path))
    with pytest.raises(DatasetError, match=r"options.language: is 'de'; en or zh is accepted"):
        VATEX(tmp_path, language="de")


# ---- what they share


@pytest.mark.parametrize("name", ["msrvtt", "youcook2", "lsmdc", "didemo", "activitynet", "vatex"])
def test_each_has_a_yaml_and_names_its_files(name, tmp_path):
    config = load_config(name)
    assert config.adapter == name in DATASETS and set(config.modalities) == {"rgb", "text"}
    adapter, _ = load_dataset(name, tmp_path)
    assert adapter.name == name and list(adapter.label_texts()) == []
    with pytest.raises(DatasetError, match=f"dataset {name}: no annotation file below") as error:
        list(adapter.clips())
    assert all(file.name in str(error.value) and file.source in str(error.value) for file in adapter.files)
    for protocol, sources in adapter.caption_sources.items():
        assert set(sources) <= set(adapter.protocols[protocol])


def test_further_protocols_from_lists(tmp_path):
    vatex(tmp_path)
    put(tmp_path, "trn.txt", f"{CUT}\n\n")
    put(tmp_path, "tst.csv", f"video_id,x\n{WHOLE},1\n")
    put(tmp_path, "val.json", ["testingtest"])  # a video: all of its clips
    lists = {"hgr": {"train": "trn.txt", "test": "tst.csv", "val": "val.json"}}
    found = parts(VATEX(tmp_path, lists=lists))
    assert [found[f"hgr {part}"] for part in ("train", "val", "test")] == [[CUT], [GONE], [WHOLE]]
    put(tmp_path, "trn.txt", f"{CUT}\nnobody\n")
    with pytest.raises(
        DatasetError, match=r"trn.txt, line 2: 'nobody' is no clip or video of vatex; correct"
    ):
        listed(VATEX(tmp_path, lists=lists))
    with pytest.raises(DatasetError, match=r"none.txt: cannot be read"):
        listed(VATEX(tmp_path, lists={"hgr": {"train": "none.txt"}}))
    with pytest.raises(DatasetError, match=r"options.lists.hgr: is 'trn.txt'; `part: file` is needed"):
        listed(VATEX(tmp_path, lists={"hgr": "trn.txt"}))
    with pytest.raises(DatasetError, match=r"options.lists: is \['trn.txt'\]; `protocol: \{part: file\}` is"):
        listed(VATEX(tmp_path, lists=["trn.txt"]))


def test_annotations_and_videos_in_folders_of_their_own(tmp_path):
    activitynet(tmp_path / "notes")
    videos(tmp_path, "root/small/v_one.mp4", "root/large/v_one.mp4", "root/train.json")
    notes = str(tmp_path / "notes" / "captions")
    clips = listed(ActivityNet(tmp_path / "root", annotations=notes, videos="large"))
    assert clips["v_one"].media["rgb"].path == "large/v_one.mp4"
    clips = listed(ActivityNet(tmp_path, annotations=notes, videos=str(tmp_path / "root" / "small")))
    assert clips["v_one"].media["rgb"].path == str(tmp_path / "root" / "small" / "v_one.mp4")
    several = (
        r"root: 2 files are called 'v_one': large/v_one.mp4, small/v_one.mp4; keep one, or set options.v"
    )
    with pytest.raises(DatasetError, match=several):
        listed(ActivityNet(tmp_path / "root", annotations=notes))
    with pytest.raises(DatasetError, match=r"2 files are called 'train.json'.* options.annotations to its"):
        listed(ActivityNet(tmp_path, annotations=".", videos="root/large"))
    with pytest.raises(DatasetError, match=r"options.videos: .*nowhere is no folder"):
        ActivityNet(tmp_path, videos="nowhere")
    with pytest.raises(DatasetError, match=r"options.annotations: is 7; a folder is needed"):
        ActivityNet(tmp_path, annotations=7)


def test_a_sound_file_beside_the_video_is_the_sound(tmp_path):
    root = activitynet(tmp_path)
    write_sound(root / "v_two.wav", np.zeros((1, 160)))
    write_sound(root / "v_three.wav", np.zeros((1, 160)))
    clips = listed(ActivityNet(root))
    assert {kind: media.path for kind, media in clips["v_two"].media.items()} == {
        "rgb": "v_two.mp4",
        "audio": "v_two.wav",
    }
    assert list(clips["v_three"].media) == ["audio"]
    assert ActivityNet(root).notes() == [
        f"1 of 3 clips have no video below {root}; they stay in their splits"
    ]
