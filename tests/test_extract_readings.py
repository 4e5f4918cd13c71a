"""What reading the media showed lies in the catalog: whole files, cut ones, and old news that is replaced."""

from extract_toys import command
from media_files import cut, noise, write_video

from store.bank import Bank

QUERY = "SELECT clip_id, declared_frames, decoded_frames, fps, width, height FROM media_read ORDER BY clip_id"


def test_a_cut_file_is_encoded_as_far_as_it_decodes_and_can_be_asked_for(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "whole.avi", frames=40, size=(320, 240), pattern=noise)
    cut(clips / "whole.avi", clips / "cut.avi", 0.5)
    (tmp_path / "toy.yaml").write_text(
        f"adapter: folder\nroot: {clips}\nmodalities:\n  rgb:\n    encoder: efficientnet-lite0\n"
    )
    run = f"--dataset {tmp_path}/toy.yaml --modality rgb --frames 2 --bank {tmp_path}/bank".split()
    _, said = command(*run)
    assert "end early" in said
    bank = Bank.open(tmp_path / "bank")
    broken, whole = bank.sql(QUERY).to_pylist()
    assert (whole["declared_frames"], whole["decoded_frames"]) == (40, 40)
    assert (whole["fps"], whole["width"], whole["height"]) == (30, 320, 240)
    assert broken["declared_frames"] == 40 and 9 < broken["decoded_frames"] < 30
    assert len(bank.select("toy", "rgb")) == 2

    # Mended later, the file is read again, and the news replaces what was there.
    (clips / "cut.avi").write_bytes((clips / "whole.avi").read_bytes())
    command(*run)
    mended, _ = bank.sql(QUERY).to_pylist()
    assert mended["decoded_frames"] == 40
