"""``python -m encoders``: what it lists is what loads; what it verifies is loaded strictly and run."""

import json
import re

import pytest
import torch

import encoders.__main__ as command
from encoders import ENCODERS, load_encoder
from encoders.describe import describe
from encoders.errors import EncoderError
from encoders.generated import generated
from encoders.listing import HEADER, row, table
from encoders.pretrained import Card, Pretrained
from encoders.protocols import Field


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        command.main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_described_without_its_weights(name):
    one = describe(name)
    described = json.loads(json.dumps(one.__dict__))
    assert described["name"] == name
    assert one.fields and set(one.default_fields) <= set(one.fields)
    assert set(one.inputs) == {modality for modality in one.modalities if modality != "text"}
    assert one.source in ("package", "hub", "file", "none")
    if one.source == "none":
        assert one.parameters == 0 and one.licence is None
    else:
        assert one.parameters > 1000 and one.file and one.published and one.licence
    cells = row(one)
    assert len(cells) == len(HEADER) and all(cells)


def test_a_packages_weights_are_present_and_a_file_is_to_be_given():
    assert describe("efficientnet-lite0").present
    assert describe("minilm").source == "package"
    assert describe("clip").present is None
    assert describe("joints").source == "none"


def test_hub_weights_are_present_once_they_are_in_the_local_cache(monkeypatch):
    """A name whose official weights are on the hub, before and after a download."""
    import huggingface_hub

    name = next((one for one in ENCODERS if describe(one).source == "hub"), None)
    if name is None:
        pytest.skip("no encoder of the table has its weights on the hub")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert describe(name).present is False
    assert "on the hub: " in row(describe(name))[-1]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert describe(name).present is True
    assert "in the local cache: " in row(describe(name))[-1]


def test_the_table_is_aligned_and_has_the_promised_columns(capsys):
    code, out, err = _run(capsys, "list", "--modality", "skeleton")
    header, rule, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert [part.strip() for part in re.split(r"\s{2,}", header)] == list(HEADER)
    assert {line.split()[0] for line in rows} >= {"joints"}
    assert not {line.split()[0] for line in rows} & {"minilm", "efficientnet-lite0"}
    starts = [match.start() for match in re.finditer(r"-+", rule)]
    assert all(line[start - 1] == " " != line[start] for line in rows for start in starts if start)


def test_numbers_in_the_table_are_those_of_the_encoder():
    cells = row(describe("efficientnet-lite0"))
    assert cells[1:5] == ("rgb, ir, depth", "12 x 3 x 224 x 224", "cls 1280, tokens 49x1280", "4.6 M")
    assert "Apache-2.0" in cells
    assert table([cells]).splitlines()[2].startswith("efficientnet-lite0  rgb, ir, depth  12 x 3")


def test_json_has_what_the_table_has_and_more(capsys):
    code, out, _ = _run(capsys, "list", "--json", "--modality", "inertial")
    listed = {one["name"]: one for one in json.loads(out)}
    assert code == 0
    assert listed["imu"]["fields"]["tokens"] == {"tokens": 1, "dim": 18, "per_clip": False, "source": None}
    assert listed["imu"]["inputs"] == {"inertial": [16, 1, 24]}


def test_show_names_pooled_fields_and_every_input(capsys):
    code, out, _ = _run(capsys, "show", "efficientnet-lite0")
    assert code == 0
    assert "tokens.grid2: 4 x 1280 a step, pooled from tokens" in out
    assert "depth: 12 x 1 x 224 x 224" in out
    assert "cls: 1 x 1280 a step (default)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "clp"), r"error: encoders: no encoder named 'clp' \(did you mean 'clip'\?\)"),
        (("list", "--modality", "smell"), "error: encoders: none takes 'smell'; omit --modality"),
        (("verify", "minilm", "--weights", "/absent"), "error: minilm: no model folder at '/absent'"),
        (("verify", "imu", "--modality", "rgb"), "error: encoders: imu does not encode 'rgb'"),
        (("verify", "joints", "--preset", "cmvra"), "error: encoders: joints: .*preset"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, arguments, said):
    code, out, err = _run(capsys, *arguments)
    assert code == 2 and out == ""
    assert re.match(said, err) and err.count("\n") == 1


# verify ---------------------------------------------------------------------------------------------------


def test_a_packages_weights_are_verified(capsys):
    code, out, err = _run(capsys, "verify", "efficientnet-lite0", "--modality", "depth.left")
    assert (code, err) == (0, "")
    assert re.search(r"loaded +\d+ keys, 4,6\d\d,\d\d\d parameters", out)
    assert load_encoder("efficientnet-lite0").space["weights"] in out
    assert "depth       12 x 1 x 224 x 224 uint8, generated" in out
    assert "-> cls 12 x 1 x 1 x 1280, finite" in out
    assert out.splitlines()[-1] == "verified"


class Patchwork(Pretrained):
    """The smallest family: one linear layer over the pixels of a frame."""

    architectures = {"patchwork": Card("a", "b", "c")}
    tiny = architectures["patchwork"]
    cards = {"patchwork": Card("patchwork.pt", "example.org/patchwork", "CC-BY-NC 4.0")}
    modalities = ("rgb",)

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        from encoders.preprocess import ImagePreprocess

        self.fields = {"embedding": Field("embedding", 1, 5, per_clip=True)}
        self.default_fields = ("embedding",)
        self.preprocess = ImagePreprocess(size=4)

    def build(self):
        return torch.nn.Linear(48, 5)

    def features(self, batch):
        flat = self.preprocess.normalise(batch).flatten(2)
        return {"embedding": self.model(flat).mean(1)[:, None, None]}


@pytest.fixture
def patchwork(monkeypatch, tmp_path):
    """The family in the table, and its checkpoint as a trainer saves it, in half precision."""
    monkeypatch.setitem(ENCODERS, "patchwork", f"{__name__}:Patchwork")
    path = tmp_path / "patchwork.pt"

    def save(**changes):
        torch.manual_seed(0)
        state = {**torch.nn.Linear(48, 5).half().state_dict(), **changes}
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 1}, path)
        return str(path)

    return save


def test_a_file_is_reported_key_by_key(capsys, patchwork):
    path = patchwork()
    code, out, err = _run(capsys, "verify", "patchwork", "--weights", path)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if " " in line.strip()}
    assert lines["stored"] == "2 keys: float16 (2)"
    assert lines["loaded"] == "2 keys, 245 parameters"
    assert lines["digest"] == load_encoder("patchwork", weights=path).space["weights"]
    assert lines["rgb"] == "12 x 3 x 4 x 4 uint8, generated"
    assert lines["->"].startswith("embedding 1 x 1 x 1 x 5, finite")


def test_what_does_not_fit_is_refused_unless_it_is_named(capsys, patchwork):
    path = patchwork(weight=torch.ones(6, 48), extra=torch.ones(2), more=torch.ones(2))
    code, _, err = _run(capsys, "verify", "patchwork", "--weights", path)
    assert code == 2
    assert f"error: patchwork: {path}: the checkpoint does not fit; 1 of 2 keys do" in err
    assert "unexpected (2): extra, more" in err
    assert "misshapen (1): weight (6, 48) instead of (5, 48)" in err
    code, out, _ = _run(
        capsys, "verify", "patchwork", "--weights", path, "--allow-partial", "weight, extra,more"
    )
    assert code == 0
    assert "unexpected  2 keys, as allowed: extra, more" in out
    assert "misshapen   1 keys, as allowed: weight" in out
    code, _, err = _run(capsys, "verify", "patchwork", "--weights", path, "--allow-partial", "weight,head.")
    assert code == 2 and "allow_partial names head., but nothing there" in err


def test_infinite_outputs_of_finite_weights_are_refused(capsys, patchwork):
    path = patchwork(weight=torch.full((5, 48), 3e38))
    code, _, err = _run(capsys, "verify", "patchwork", "--weights", path)
    assert code == 2
    assert err.startswith("error: patchwork: embedding holds NaN or infinite values")


def test_a_missing_file_names_the_official_one_where_it_is_and_its_licence(capsys, patchwork):
    patchwork()
    for arguments in ((), ("--weights", "/absent.pt")):
        code, _, err = _run(capsys, "verify", "patchwork", *arguments)
        assert code == 2
        assert "patchwork.pt" in err and "example.org/patchwork" in err and "CC-BY-NC 4.0" in err


def test_a_folder_of_the_hub_is_verified_too(capsys, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=24)).save_pretrained(
        tmp_path
    )
    code, out, err = _run(capsys, "verify", "clip", "--weights", str(tmp_path), "--modality", "rgb")
    assert (code, err) == (0, "")
    assert f"folder      {tmp_path}" in out
    assert "rgb         12 x 3 x 32 x 32 uint8, generated" in out
    assert "-> embedding 12 x 1 x 1 x 24, finite" in out


# Generated media ------------------------------------------------------------------------------------------


def test_generated_media_are_the_same_every_time():
    for modality in ("rgb", "depth", "skeleton", "inertial", "audio"):
        assert (generated(modality, 3)[0] == generated(modality, 3)[0]).all()
    both, times = generated("rgb+depth", 3)
    assert set(both) == {"rgb", "depth"} and len(times) == 3


def test_undeclared_shapes_are_an_error(capsys, patchwork, monkeypatch):
    path = patchwork()
    monkeypatch.setattr(Patchwork, "features", lambda self, batch: {"embedding": torch.ones(1, 1, 1, 4)})
    code, _, err = _run(capsys, "verify", "patchwork", "--weights", path)
    assert code == 2 and "embedding is 1 x 1 x 1 x 4 and declared 1 x 5" in err


def test_unknown_names_raise_for_callers_too():
    with pytest.raises(EncoderError, match="no encoder named 'x'"):
        describe("x")
