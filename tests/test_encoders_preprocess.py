"""Pixels -> network input: the official processors' arithmetic, our own geometry, truths about pictures."""

import json

import numpy as np
import pytest
import torch
from hub_folders import IMAGENET
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from encoders import load_encoder
from encoders.errors import EncoderError, WeightsError
from encoders.hub import preprocessing
from encoders.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess, depth_to_gray
from encoders.protocols import CropBox


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [np.array(image) for image in load_sample_images().images]


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# Official processors: the values of the published folders' preprocessor_config.json.
STANDARD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3}
PROCESSORS = {
    "clip-vit-b32": (CLIPImageProcessorPil, {"size": {"shortest_edge": 224}, "crop_size": 224, **CLIP}),
    "clip-vit-l14-336": (CLIPImageProcessorPil, {"size": {"shortest_edge": 336}, "crop_size": 336, **CLIP}),
    "siglip-b16-224": (SiglipImageProcessorPil, {"size": square(224), "resample": 3, **STANDARD}),
    "siglip-so400m-384": (SiglipImageProcessorPil, {"size": square(384), "resample": 3, **STANDARD}),
    "siglip2-b16-224": (SiglipImageProcessorPil, {"size": square(224), "resample": 2, **STANDARD}),
    "dinov2-b14": (
        BitImageProcessorPil,
        {"size": {"shortest_edge": 256}, "crop_size": square(224), "resample": 3, **IMAGENET},
    ),
    "xclip-b16": (
        VideoMAEImageProcessorPil,
        {"size": {"shortest_edge": 224}, "crop_size": square(224), "resample": 2, **IMAGENET},
    ),
    "videomae-b": (
        VideoMAEImageProcessorPil,
        {"size": {"shortest_edge": 224}, "crop_size": square(224), "resample": 2, **IMAGENET},
    ),
    "timesformer-b": (
        VideoMAEImageProcessorPil,
        {
            **{"size": {"shortest_edge": 224}, "crop_size": square(224), "resample": 2},
            **{"image_mean": [0.45] * 3, "image_std": [0.225] * 3},
        },
    ),
    "vjepa2-l": (
        VideoMAEImageProcessorPil,
        {"size": {"shortest_edge": 292}, "crop_size": square(256), "resample": 2, **IMAGENET},
    ),
}
# Height and width: landscape, portrait, NTU's, tiny (scaled up), odd, and one that needs no scaling.
SIZES = [
    (480, 640),
    (640, 480),
    (1080, 1920),
    (1920, 1080),
    (424, 512),
    (33, 47),
    (17, 8),
    (333, 101),
    (224, 224),
]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers_pil_processors(name, photos):
    """What an encoder does by default is the official processor's arithmetic: mean difference <= 1/255."""
    kind, values = PROCESSORS[name]
    processor = kind(**values)
    ours = load_encoder(name, weights="random").preprocess
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    for height, width in SIZES:
        frame = np.array(Image.fromarray(photos[height % 2]).resize((width, height)))
        expected = processor([frame], return_tensors="pt")["pixel_values"]
        actual = ours.normalise(torch.from_numpy(ours(frame[None], "rgb")))
        expected = expected.reshape(actual.shape)
        difference = (actual - expected).abs() * std
        assert difference.mean() <= 1 / 255, (height, width)
        assert difference.max() <= 6 / 255, (height, width)  # no shift, no other crop


# What a folder's preprocessor_config.json may say, and how we read it.
READINGS = {
    "edge and crop": ({"size": {"shortest_edge": 40}, "crop_size": square(32)}, (32, "centre", 32 / 40)),
    "numbers, as of old": ({"size": 40, "crop_size": 32}, (32, "centre", 32 / 40)),
    "a square, no crop": ({"size": square(32), "do_center_crop": False}, (32, "squash", 1.0)),
    "a square, then its crop": ({"size": square(40), "crop_size": 32}, (32, "squash", 32 / 40)),
    "a rectangle": (
        {"size": {"height": 32, "width": 48}, "do_center_crop": False},
        ((32, 48), "squash", 1.0),
    ),
    "a rectangular crop": (
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 32}},
        ((40, 32), "centre", 32 / 40),
    ),
    "nothing": ({}, (32, "centre", 1.0)),
}


@pytest.mark.parametrize("case", READINGS)
def test_a_folders_own_values_are_read_and_mean_what_transformers_does(case, tmp_path, photos):
    values, expected = READINGS[case]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, **CLIP}))
    published = ImagePreprocess(size=32, resize="centre")
    ours = preprocessing(tmp_path, published, "clip", any_size=True)
    assert (ours.size, ours.resize, ours.centre_fraction) == expected
    assert (ours.interpolation, ours.mean, ours.std) == ("bicubic", CLIP_MEAN, CLIP_STD)
    assert json.loads(json.dumps(ours.space())) == ours.space()
    processor = CLIPImageProcessorPil(**{"size": {"shortest_edge": 32}, "crop_size": 32, **values})
    for photo in (photos[0], photos[1].transpose(1, 0, 2)[:37, :501]):
        theirs = processor([photo], return_tensors="pt")["pixel_values"]
        got = ours.normalise(torch.from_numpy(ours(photo[None], "rgb")))
        assert got.shape == theirs.shape
        assert ((got - theirs).abs() * torch.tensor(CLIP_STD).view(3, 1, 1)).mean() <= 1 / 255


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resample": 1}, r"resample is 1; accepted are 2 \(bilinear\) and 3 \(bicubic\)"),
        ({"do_resize": False}, "neither resized nor rescaled"),
        ({"rescale_factor": 1 / 127.5}, r"rescale_factor is 0\.0078"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "without a centre crop"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "accepted are height and width, or"),
        ({"size": {"shortest_edge": 32}, "crop_size": 40}, r"crop of \(40, 40\) from \(32, 32\) pixels"),
    ],
)
def test_values_that_would_be_ignored_are_refused(values, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message):
        preprocessing(tmp_path, ImagePreprocess(size=32, resize="centre"), "clip")


def test_values_nested_in_one_file_come_first(tmp_path):
    """As transformers 5 writes and reads them."""
    nested = {"image_processor": {"size": {"shortest_edge": 48}, "crop_size": 32}, "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}}))
    ours = preprocessing(tmp_path, ImagePreprocess(size=32, resize="centre"), "clip")
    assert ours.centre_fraction == 32 / 48
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert preprocessing(tmp_path, ImagePreprocess(size=64, resize="centre"), "clip").centre_fraction == 1.0


def test_spaces_of_existing_banks_stay_what_they_were():
    """Features are found by this; it may change only where the arithmetic does, with a revision."""
    assert ImagePreprocess().space() == {
        "size": 224,
        "resize": "squash",
        "centre_fraction": 1.0,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "depth_range_mm": [500.0, 4500.0],
        "revision": 1,
    }


def test_squash_keeps_the_whole_frame():
    frame = np.zeros((1, 40, 80, 3), np.uint8)
    frame[:, :, :8] = 255  # the leftmost tenth
    squashed = ImagePreprocess(size=100)(frame, "rgb")
    assert squashed.shape == (1, 3, 100, 100)
    assert squashed[..., :9].min() > 200 and squashed[..., 12:].max() == 0


def test_crop_and_flip_take_the_box_asked_for():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 100, 100, 3)).copy()
    right_half = ImagePreprocess(size=50)(ramp, "rgb", CropBox(left=0.5, width=0.5))
    assert right_half[0, 0, 0].tolist() == list(range(50, 100))
    mirrored = ImagePreprocess(size=50)(ramp, "rgb", CropBox(left=0.5, width=0.5, flip=True))
    assert mirrored[0, 0, 0].tolist() == list(range(99, 49, -1))


def test_depth_grey_is_metric_near_is_bright_and_missing_stays_black():
    assert depth_to_gray(np.array([0, 500, 2500, 4500, 60000], np.uint16)).tolist() == [0, 255, 128, 1, 1]
    prepared = ImagePreprocess(size=8)(np.full((2, 16, 16), 2500, np.uint16), "depth")
    assert prepared.shape == (2, 1, 8, 8)
    assert ImagePreprocess().normalise(torch.from_numpy(prepared)).shape == (2, 3, 8, 8)


def test_other_shapes_are_refused():
    with pytest.raises(EncoderError, match=r"float64 \(2, 4\); expected"):
        ImagePreprocess()(np.zeros((2, 4)), "rgb")
