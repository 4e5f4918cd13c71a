"""CLAP: front end and features against transformers' extractor and model; windows; folders."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from extract_toys import contents, extract
from media_files import write_sound

from encoders import load_encoder
from encoders.clap import COUNTS, Clap, ClapLogMel
from encoders.errors import EncoderError, WeightsError

NAME = "clap-htsat"
RNG = np.random.default_rng(0)
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "dog", "barks", "loudly", "rain", "on", "the", "roof"]


def _noise(seconds, rate_hz):
    """Noise that fades in from silence."""
    count = round(seconds * rate_hz)
    return (RNG.normal(size=count) * np.linspace(0, 0.3, count) ** 2).astype(np.float32)


def _extractor(**values):
    settings = {"frequency_min": 50, "truncation": "rand_trunc", **values}
    return transformers.ClapFeatureExtractor(**settings)


def _extracted(samples, extractor):
    features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")
    return features["input_features"][0, 0]


@pytest.mark.parametrize("seconds", [10.0, 9.9, 3.0, 0.01])
def test_the_front_end_is_transformers_extractor(seconds):
    samples = _noise(seconds, 48000)
    got = ClapLogMel()(samples, "audio")
    assert got.shape == (1, 1001, 64)
    np.testing.assert_allclose(got[0], _extracted(samples, _extractor()), atol=1e-4)


def test_faults_of_the_front_end_are_caught(monkeypatch):
    samples = _noise(10.0, 48000)
    want = _extracted(samples, _extractor())
    symmetric, pad = np.hanning, np.pad
    assert np.abs(ClapLogMel(low_hz=0.0)(samples, "audio")[0] - want).max() > 0.1
    with monkeypatch.context() as patch:
        patch.setattr(np, "hanning", lambda size: np.append(symmetric(size - 1), 0))
        assert np.abs(ClapLogMel()(samples, "audio")[0] - want).max() > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(np, "pad", lambda values, width, mode="constant": pad(values, width))
        assert np.abs(ClapLogMel()(samples, "audio")[0] - want).max() > 0.1


def test_a_long_sound_is_windows_from_its_beginning_to_its_end():
    prepare, samples = ClapLogMel(), _noise(25.0, 48000)
    windows = prepare.windows(samples)
    assert len(windows) == 3
    for window, second in zip(windows, (0.0, 7.5, 15.0), strict=True):
        start = round(second * 48000)
        np.testing.assert_array_equal(window, samples[start : start + 480000])
    np.testing.assert_allclose(
        prepare(samples, "audio")[1], _extracted(windows[1].astype(np.float32), _extractor()), atol=1e-4
    )


def test_the_reader_is_asked_for_its_rate(tmp_path):
    """A tone of 10 kHz in a 44.1 kHz file: at the reader's own 16 kHz nothing of it would be left."""

    def tone(rate):
        return 0.5 * np.sin(2 * np.pi * 10_000 * np.arange(3 * rate) / rate)

    write_sound(tmp_path / "tone.wav", tone(44100)[None], rate=44100)
    (tmp_path / "list.txt").write_text("tone.wav 0\n")
    config = {
        "name": "sounds",
        "adapter": "listing",
        "root": str(tmp_path),
        "options": {"file": "list.txt", "modality": "audio"},
        "modalities": {"audio": {"encoder": NAME, "weights": "random", "options": {"architecture": "tiny"}}},
    }
    (tmp_path / "sounds.yaml").write_text(yaml.safe_dump(config))
    bank = extract(tmp_path / "sounds.yaml", tmp_path / "bank", modality="audio", precision="fp32")
    stored, _ = contents(bank, "sounds", "audio")["embedding", 0, "tone.wav"]
    encoder = load_encoder(NAME, "random", modality="audio", architecture="tiny")
    front = encoder.prepare()
    heard = encoder.encode(torch.from_numpy(front(tone(48000), "audio"))[None])["embedding"].flatten()
    silence = encoder.encode(torch.from_numpy(front(1e-4 * tone(48000), "audio"))[None])[
        "embedding"
    ].flatten()
    got = torch.from_numpy(stored.astype(np.float32)).flatten()
    assert (got - heard).norm() < 0.25 * (silence - heard).norm()


def _tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(WORDS)}
    one = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    one.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=one, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint as the hub has them, every weight random, and its model."""
    path, shape = tmp_path_factory.mktemp("clap"), Clap.tiny
    torch.manual_seed(0)
    model = transformers.ClapModel(transformers.ClapConfig(**shape.configuration())).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in key and "weight" in key else 0.0, 0.2)
    model.save_pretrained(path)
    _extractor(feature_size=shape.bins, max_length_s=shape.seconds).save_pretrained(path)
    _tokenizer(path)
    return path, model


def _encoder(weights, modality="audio", **options):
    return load_encoder(NAME, str(weights), modality=modality, architecture="tiny", **options)


def test_features_of_sounds_are_transformers_own(folder):
    path, model = folder
    encoder, samples = _encoder(path), _noise(5.0, 48000)
    assert encoder.name == "clap-htsat-tiny"
    prepared = encoder.prepare()(samples, "audio", None, np.zeros(1))
    assert prepared.shape == (3, 201, 16)
    features = encoder.encode(torch.from_numpy(prepared)[None])
    extractor = transformers.ClapFeatureExtractor.from_pretrained(path)
    pieces = [samples[start : start + 96000] for start in (0, 72000, 144000)]
    mels = torch.from_numpy(np.stack([_extracted(piece, extractor) for piece in pieces]))
    with torch.no_grad():
        want = model.get_audio_features(input_features=mels[:, None]).pooler_output
    got = features["tokens"][0, :, 0]
    torch.testing.assert_close(torch.nn.functional.normalize(got, dim=-1), want, rtol=1e-3, atol=1e-4)
    assert (want[0] - want[1]).abs().max() > 1e-3  # else the windows would not be told apart
    torch.testing.assert_close(features["embedding"][0, 0, 0], got.mean(0))


def test_features_of_texts_are_transformers_own(folder):
    path, model = folder
    encoder = _encoder(path, "text")
    texts = ["a dog barks loudly", "rain on the roof", "a"]
    tokens = transformers.AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    got = encoder.encode_text(texts)
    torch.testing.assert_close(torch.nn.functional.normalize(got, dim=-1), want, rtol=1e-3, atol=1e-4)
    assert set(encoder.fields) == {"embedding"} and encoder.fields["embedding"].dim == 12
    assert encoder.encode_text(["dog " * 500]).isfinite().all()
    with pytest.raises(EncoderError, match="its tokenizer comes with its folder"):
        _encoder("random", "text").encode_text(texts)


def test_windows_in_several_batches_are_the_same(folder, monkeypatch):
    encoder = _encoder(folder[0])
    windows = torch.from_numpy(encoder.prepare()(_noise(9.0, 48000), "audio", None, np.zeros(1)))[None]
    whole = encoder.encode(windows)["tokens"]
    monkeypatch.setattr("encoders.clap.BATCH_WINDOWS", 2)
    torch.testing.assert_close(encoder.encode(windows)["tokens"], whole, rtol=1e-4, atol=1e-5)


def _changed(folder, tmp_path, name, **values):
    for one in folder[0].iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**content, **values}))
    return tmp_path


def test_the_folder_s_front_end_is_used(folder, tmp_path):
    changed = _changed(folder, tmp_path, "preprocessor_config.json", frequency_min=20, hop_length=500)
    assert (_encoder(folder[0]).preprocess.low_hz, _encoder(changed).preprocess.low_hz) == (50, 20)
    assert _encoder(changed).preprocess.hop == 500
    assert _encoder(changed).space != _encoder(folder[0]).space


def test_a_front_end_saved_as_part_of_a_processor_is_used(folder, tmp_path):
    changed = _changed(folder, tmp_path, "preprocessor_config.json", frequency_min=30)
    (changed / "preprocessor_config.json").unlink()
    extractor = _extractor(frequency_min=20, feature_size=16, max_length_s=2)
    transformers.ClapProcessor(extractor, _encoder(folder[0]).tokenizer).save_pretrained(changed)
    assert not (changed / "preprocessor_config.json").exists()
    assert _encoder(changed).preprocess.low_hz == 20


@pytest.mark.parametrize(("key", "value"), [("padding", "repeat"), ("truncation", "fusion")])
def test_a_front_end_that_is_not_done_here_is_refused(folder, tmp_path, key, value):
    changed = _changed(folder, tmp_path, "preprocessor_config.json", **{key: value})
    with pytest.raises(WeightsError, match=f"{key} is '{value}'; accepted is"):
        _encoder(changed)


def test_fused_checkpoints_are_refused(folder, tmp_path):
    audio = json.loads((folder[0] / "config.json").read_text())["audio_config"]
    changed = _changed(folder, tmp_path, "config.json", audio_config={**audio, "enable_fusion": True})
    with pytest.raises(WeightsError, match="without fusion, such as laion/clap-htsat-unfused"):
        _encoder(changed)


def test_a_folder_that_lacks_a_tensor_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    changed = _changed(folder, tmp_path, "config.json")
    tensors = load_file(changed / "model.safetensors")
    tensors.pop("audio_projection.linear1.weight")
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing_keys \(1\): audio_projection.linear1.weight"):
        _ = _encoder(changed).model


def test_what_transformers_counts_itself_may_be_missing(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    changed = _changed(folder, tmp_path, "config.json")
    tensors = load_file(changed / "model.safetensors")
    for name in COUNTS:
        tensors.pop(name)
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    own, want = _encoder(changed).model.state_dict(), folder[1].state_dict()
    assert all(torch.equal(own[key], value) for key, value in want.items())


def test_another_size_is_named_so(folder):
    encoder = load_encoder(NAME, str(folder[0]), modality="audio")
    assert encoder.name == "clap-htsat-custom" and encoder.fields["tokens"].dim == 12


def test_a_configuration_of_defaults_is_the_official_size(folder, tmp_path):
    changed = _changed(folder, tmp_path, "config.json", audio_config={}, text_config={}, projection_dim=512)
    (changed / "preprocessor_config.json").unlink()
    encoder = load_encoder(NAME, str(changed), modality="audio")
    assert encoder.name == NAME and encoder.preprocess == ClapLogMel()


@pytest.mark.slow
def test_the_full_size_model():
    encoder = load_encoder(NAME, "random", modality="audio")
    assert encoder.parameters() == 153_492_890  # the official file has 615 MB
    prepared = encoder.prepare()(_noise(12.0, 48000), "audio", None, np.zeros(1))
    features = encoder.encode(torch.from_numpy(prepared)[None])
    assert features["tokens"].shape == (1, 2, 1, 512) and features["embedding"].shape == (1, 1, 1, 512)
    assert features["tokens"].isfinite().all() and features["tokens"].std() > 0


def test_other_tensors_are_saved_as_a_folder_that_loads(folder, tmp_path):
    before = _encoder(folder[0])
    tensors = {
        key: value * 1.5 if value.is_floating_point() else value
        for key, value in before.model.state_dict().items()
    }
    digest = before.save(tmp_path / "trained", tensors)
    after = _encoder(tmp_path / "trained")
    assert after.space["weights"] == digest != before.space["weights"]
    found = after.model.state_dict()
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in found)
    assert after.preprocess == before.preprocess
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
