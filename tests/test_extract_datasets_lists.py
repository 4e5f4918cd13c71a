"""Datasets of one's own: lists of clips, and folders of media."""

import os

import pytest

from extract.datasets import DatasetError
from extract.datasets.clips import Caption
from extract.datasets.folder import Folder
from extract.datasets.listing import Listing
from store.errors import UnknownNameError
from store.register import DuplicateClipError, LabelError


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def clips_of(adapter):
    return {clip.clip_id: clip for clip in adapter.clips()}


# ---- `path label` lines


def test_path_label_lines(tmp_path):
    write(tmp_path / "train.txt", "videos/a b.mp4 0\nvideos/c.mp4 1\n")
    write(tmp_path / "val.txt", "videos/d.mp4 001\n")
    write(tmp_path / "labels.csv", "id,name\n0,abseiling\n1,air drumming\n")
    adapter = Listing(tmp_path, file={"train": "train.txt", "val": "val.txt"}, classes="labels.csv")
    clips = clips_of(adapter)
    assert [(c.clip_id, c.label, c.label_name) for c in clips.values()] == [
        ("videos/a b.mp4", 0, "abseiling"),
        ("videos/c.mp4", 1, "air drumming"),
        ("videos/d.mp4", 1, "air drumming"),
    ]
    assert clips["videos/a b.mp4"].media["rgb"].reader == "video"
    assert [tuple(split) for split in adapter.splits(clips.values())] == [
        ("listed", "videos/a b.mp4", "train"),
        ("listed", "videos/c.mp4", "train"),
        ("listed", "videos/d.mp4", "val"),
    ]
    assert ("video", "a video of air drumming") in [(t.prompt_set, t.text) for t in adapter.label_texts()]


def test_path_frames_label_lines_without_suffix(tmp_path):
    write(tmp_path / "list.txt", "1234 88 3\n1235 90 0\n")
    adapter = Listing(tmp_path, file="list.txt", columns=["path", "frames", "label"], suffix=".webm")
    clips = clips_of(adapter)
    assert list(clips) == ["1234.webm", "1235.webm"] and clips["1234.webm"].label == 3
    assert not list(adapter.label_texts())  # numbers without names: no class list


def test_labels_that_are_words_make_the_class_list(tmp_path):
    write(tmp_path / "list.txt", "a.mp4 wave\nb.mp4 clap\nc.mp4 wave\n")
    adapter = Listing(tmp_path, file="list.txt")
    assert adapter.class_names() == ["clap", "wave"]
    assert [clip.label for clip in adapter.clips()] == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "options", "error", "match"),
    [
        (
            "a.mp4 0\nb.mp4 5\n",
            {"classes": ["x", "y"]},
            LabelError,
            r"line 2: label 5 is outside the class list; 0 to 1",
        ),
        ("a.mp4 -1\n", {}, LabelError, r"line 1: label -1 is outside"),
        (
            "a.mp4 z\n",
            {"classes": ["x", "y"]},
            LabelError,
            r"line 1: label 'z' is not in the class list; 0 to 1 .*names",
        ),
        ("a.mp4\n", {}, DatasetError, r"line 1: is 'a.mp4'; `path label` is needed"),
        ("\n", {}, DatasetError, "lists no clip"),
        (
            "a.mp4 0\nb.mp4 1\na.mp4 0\n",
            {},
            DuplicateClipError,
            r"line 3: clip id 'a.mp4' is also that of .*line 1;",
        ),
        ("a.xyz 0\n", {}, DatasetError, r"line 1: no reader for rgb file 'a.xyz'; set readers.rgb"),
        ("a.mp4 0\nb.mp4 x\n", {}, DatasetError, r"label 0 is a number, others are names"),
        ("a.mp4 0\n", {"columns": ["label", "path"]}, DatasetError, r"columns is \['label', 'path'\]"),
    ],
)
def test_lists_that_are_wrong_name_the_line(tmp_path, text, options, error, match):
    write(tmp_path / "list.txt", text)
    with pytest.raises(error, match=match):
        list(Listing(tmp_path, file="list.txt", **options).clips())


def test_missing_and_undecodable_lists(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.txt: there is no such list"):
        Listing(tmp_path, file="none.txt")
    (tmp_path / "latin.csv").write_bytes("rgb,label\nf\u00fc.mp4,0\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.csv: list cannot be read"):
        Listing(tmp_path, file="latin.csv")


# ---- CSV and JSON lines

CSV = """\
clip_id,rgb,ir.ceiling,inertial,label,label_name,split,split:fold1,subject,start,end,caption,weather
c1,v/1.mp4,v/1_ir.mp4,m/1.mat,0,wave,train,test,s1,1.5,3.25,"a man, waving",sunny
c2,v/2.mp4,,,1,clap,test,,s2,,,,
"""


def test_csv_with_a_column_per_modality(tmp_path):
    write(tmp_path / "clips.csv", CSV)
    readers = {"inertial": {"reader": "mat", "layout": "TC", "fps": 50}}
    adapter = Listing(tmp_path, readers=readers)
    clips = clips_of(adapter)
    c1 = clips["c1"]
    assert {name: (m.path, m.reader) for name, m in c1.media.items()} == {
        "rgb": ("v/1.mp4", "video"),
        "ir.ceiling": ("v/1_ir.mp4", "video"),
        "inertial": ("m/1.mat", "mat"),
    }
    assert c1.media["inertial"].options == {"layout": "TC", "fps": 50}
    assert (c1.start_seconds, c1.end_seconds, c1.subject) == (1.5, 3.25, "s1")
    assert c1.captions == (Caption("a man, waving", "listing"),) and c1.attributes == {"weather": "sunny"}
    assert list(clips["c2"].media) == ["rgb"] and clips["c2"].captions == ()
    assert adapter.class_names() == ["wave", "clap"]
    assert sorted(map(tuple, adapter.splits(clips.values()))) == [
        ("fold1", "c1", "test"),
        ("listed", "c1", "train"),
        ("listed", "c2", "test"),
    ]


def test_awkward_paths_in_csv(tmp_path):
    names = ["a b.mp4", "Türkçe 動画.mp4", "new\nline.mp4", 'quo"te.mp4', "com,ma.mp4"]
    quoted = "".join('"' + name.replace('"', '""') + '",0\n' for name in names)
    write(tmp_path / "clips.csv", "rgb,label\n" + quoted)
    assert list(clips_of(Listing(tmp_path))) == names


def test_json_lines_with_several_captions(tmp_path):
    write(
        tmp_path / "clips.jsonl",
        '{"rgb": "a.mp4", "start": 0, "end": 2, "caption": ["one", "two", "one"], "goal": {"id": 3}}\n'
        '{"rgb": "a.mp4", "start": 2, "end": 5.5, '
        '"caption": {"text": "x", "source": "y", "start_seconds": 3}}\n',
    )
    first, second = Listing(tmp_path, file="clips.jsonl").clips()
    assert (first.clip_id, second.clip_id) == ("a.mp4#0-2", "a.mp4#2-5.5")  # two clips of one recording
    assert [caption.text for caption in first.captions] == ["one", "two"]
    assert second.captions == (Caption("x", "y", 3.0),)
    assert first.attributes == {"goal": {"id": 3}} and first.label is None


def test_caption_files(tmp_path):
    write(tmp_path / "t" / "1.txt", "a person waves\n")
    write(tmp_path / "clips.csv", "rgb,caption_file\na.mp4,t/1.txt\n")
    assert next(iter(Listing(tmp_path).clips())).captions == (Caption("a person waves", "listing"),)
    (tmp_path / "t" / "1.txt").unlink()
    with pytest.raises(DatasetError, match=r"line 2: .*1\.txt: there is no such file"):
        list(Listing(tmp_path).clips())


@pytest.mark.parametrize(
    ("name", "text", "error", "match"),
    [
        ("clips.csv", "rgb,label\na.mp4\n", DatasetError, r"line 2: does not have the header's 2 fields"),
        ("clips.csv", "rgb,label\na,b.mp4,1\n", DatasetError, r"line 2: does not have the header's 2 fields"),
        ("clips.csv", "path,label\na.mp4,1\n", DatasetError, r"line 2: names no media; a column of rgb, ir"),
        ("clips.csv", "rgb,start\na.mp4,soon\n", DatasetError, r"line 2: start is 'soon'; seconds"),
        (
            "clips.csv",
            "rgb,start,end\na.mp4,3,2\n",
            DatasetError,
            r"line 2: the clip ends at 2 s and begins at 3 s",
        ),
        (
            "clips.csv",
            "clip_id,rgb\nx,a.mp4\nx,b.mp4\n",
            DuplicateClipError,
            r"line 3: clip id 'x' is also .*line 2;",
        ),
        ("clips.jsonl", "{]\n", DatasetError, r"line 1: is no JSON"),
        ("clips.jsonl", "[1]\n", DatasetError, r"line 1: is a list; an object per line"),
        ("clips.jsonl", '{"rgb": "a.mp4", "label": 1.5}\n', DatasetError, r"line 1: label is 1\.5"),
        ("clips.jsonl", '{"rgb": "a.mp4", "caption": {"txt": 1}}\n', DatasetError, r"line 1: caption is"),
        (
            "clips.csv",
            "rgb,label,label_name\na.mp4,0,x\nb.mp4,0,y\n",
            DatasetError,
            r"label 0 is 'y', elsewhere 'x'",
        ),
    ],
)
def test_tables_that_are_wrong_name_the_line(tmp_path, name, text, error, match):
    write(tmp_path / name, text)
    with pytest.raises(error, match=match):
        list(Listing(tmp_path, file=name).clips())


def test_unknown_reader_of_a_listing(tmp_path):
    write(tmp_path / "clips.csv", "rgb\na.mp4\n")
    with pytest.raises(UnknownNameError, match="no reader named 'vid'"):
        list(Listing(tmp_path, readers={"rgb": "vid"}).clips())


def test_readers_by_ending(tmp_path):
    header = "rgb,depth,skeleton,audio,ir\n"
    (tmp_path / "d").mkdir()
    write(
        tmp_path / "clips.csv",
        header + "frames/1,d,s.skeleton,v.mp4,i.png\nv.MOV,d/x.png,s.npy,a.wav,i.avi\n",
    )
    readers = [{name: m.reader for name, m in clip.media.items()} for clip in Listing(tmp_path).clips()]
    assert readers == [
        {"rgb": "images", "depth": "depth-png", "skeleton": "ntu-skeleton", "audio": "audio", "ir": "images"},
        {"rgb": "video", "depth": "depth-png", "skeleton": "skeleton-npy", "audio": "audio", "ir": "video"},
    ]


# ---- folders


def test_a_directory_per_class(tmp_path):
    for name in ("wave/a.mp4", "wave/b b.avi", "throw_ball/a.mp4", "wave/.hidden.mp4", "wave/readme.md"):
        write(tmp_path / name)
    write(tmp_path / "wave" / "sub" / "c.mkv")
    adapter = Folder(tmp_path)
    assert adapter.class_names() == ["throw_ball", "wave"]
    assert [(c.clip_id, c.label, c.label_name) for c in adapter.clips()] == [
        ("throw_ball/a", 0, "throw_ball"),
        ("wave/a", 1, "wave"),
        ("wave/b b", 1, "wave"),
        ("wave/sub/c", 1, "wave"),
    ]
    assert not list(adapter.splits(adapter.clips()))
    assert [t.text for t in adapter.label_texts() if t.prompt_set == "name"] == ["throw ball", "wave"]


def test_media_without_classes(tmp_path):
    write(tmp_path / "a.mp4")
    write(tmp_path / "more" / "b.mp4")
    adapter = Folder(tmp_path)
    assert adapter.class_names() == [] and not list(adapter.label_texts())
    assert [(c.clip_id, c.label, c.label_name) for c in adapter.clips()] == [
        ("a", None, None),
        ("more/b", None, None),
    ]
    assert [c.label for c in Folder(tmp_path, classes=True).clips()] == [None, 0]


def test_part_folders_above_the_classes(tmp_path):
    for name in ("train/wave/a.mp4", "train/clap/a.mp4", "Val/wave/a.mp4", "test/jump/a.mp4"):
        write(tmp_path / name)
    adapter = Folder(tmp_path)
    assert adapter.class_names() == ["clap", "jump", "wave"]
    clips = list(adapter.clips())
    assert {c.clip_id: c.label for c in clips} == {
        "Val/wave/a": 2,
        "test/jump/a": 1,
        "train/clap/a": 0,
        "train/wave/a": 2,
    }
    assert {(s.protocol, s.part, s.clip_id) for s in adapter.splits(clips)} >= {
        ("folder", "val", "Val/wave/a")
    }


def test_files_of_one_clip_captions_and_sequences(tmp_path):
    for name in ("wave/a.mp4", "wave/a.wav", "wave/still.jpg", "wave/seq/1.png", "wave/seq/2.png"):
        write(tmp_path / name)
    write(tmp_path / "wave" / "a.txt", "somebody waves")
    write(tmp_path / "wave" / "alone.txt", "belongs to nothing")
    clips = clips_of(Folder(tmp_path, fps=10.0))
    assert list(clips) == ["wave/a", "wave/seq", "wave/still"]
    assert {name: m.reader for name, m in clips["wave/a"].media.items()} == {"rgb": "video", "audio": "audio"}
    assert clips["wave/a"].captions == (Caption("somebody waves", "folder"),)
    assert clips["wave/seq"].media["rgb"].options == {"fps": 10.0}
    assert clips["wave/still"].media["rgb"].path == "wave/still.jpg"


def test_same_stem_twice_keeps_the_suffix(tmp_path):
    for name in ("wave/a.mp4", "wave/a.avi", "wave/b.mp4"):
        write(tmp_path / name)
    assert list(clips_of(Folder(tmp_path))) == ["wave/a.avi", "wave/a.mp4", "wave/b"]


@pytest.mark.parametrize("name", ["a b", "Türkçe 動画", "new\nline", "per%cent", "quote'\""])
def test_awkward_names(tmp_path, name):
    write(tmp_path / name / f"{name}.mp4")
    (clip,) = Folder(tmp_path).clips()
    assert clip.clip_id == f"{name}/{name}" and clip.label_name == name
    assert (tmp_path / clip.media["rgb"].path).exists()


def test_name_that_is_no_utf8_is_named(tmp_path):
    write(tmp_path / "wave" / "a.mp4")
    with open(os.fsencode(tmp_path) + b"/wave/\xff.mp4", "wb"):
        pass
    with pytest.raises(DatasetError, match=r"wave: name '\\udcff\.mp4' is not UTF-8; rename it"):
        list(Folder(tmp_path).clips())


def test_unlistable_class_folder(tmp_path, monkeypatch):
    write(tmp_path / "wave" / "a.mp4")
    write(tmp_path / "clap" / "a.mp4")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("clap"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"clap: cannot be listed \(Permission denied\); allow reading it"):
        list(Folder(tmp_path).clips())


def test_a_link_that_leads_back(tmp_path):
    write(tmp_path / "wave" / "a.mp4")
    (tmp_path / "wave" / "again").symlink_to(tmp_path / "wave")
    with pytest.raises(DatasetError, match="folders deep; a link may lead back"):
        list(Folder(tmp_path).clips())
