"""Contract over the HEADS table: unit rows, padding and neighbours do not matter, gradients arrive."""

import pytest
import torch

from align import HEADS
from align.heads import masked_mean
from align.model import Heads, HeadSpec, OptionError, build
from align.resample import interpolate, resample
from store.errors import UnknownNameError

B, T, N, D, E = 5, 9, 3, 8, 8
ORDERED = ("sequence", "conv", "transformer")  # heads for which the order of frames matters
pytestmark = pytest.mark.filterwarnings("error")


def make(name, **options):
    torch.manual_seed(0)
    return build(HEADS, "head", name, {"tokens": N, "dim": D, "embedding": E}, options).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(B, T, N, D, generator=generator)
    lengths = torch.tensor([9, 4, 1, 7, 2])
    return features, torch.arange(T) < lengths[:, None]


@pytest.fixture(params=sorted(HEADS))
def name(request):
    return request.param


def test_rows_are_unit_vectors_of_the_asked_width(name, batch):
    embedded = make(name)(*batch)
    assert embedded.shape == (B, E) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(B))


def test_no_mask_means_every_frame_is_valid(name, batch):
    head, (features, _) = make(name), batch
    torch.testing.assert_close(head(features, None), head(features, torch.ones(B, T, dtype=torch.bool)))


def test_what_padding_holds_and_how_much_there_is_does_not_matter(name, batch):
    head, (features, mask) = make(name), batch
    other = torch.where(mask[..., None, None], features, 1e4)
    longer = torch.cat([other, torch.full((B, 3, N, D), -7.0)], 1)
    longer_mask = torch.cat([mask, torch.zeros(B, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(head(other, mask), head(features, mask))
    torch.testing.assert_close(head(longer, longer_mask), head(features, mask), atol=1e-5, rtol=1e-4)


def test_a_clip_embeds_alike_alone_and_cut_to_its_length(name, batch):
    head, (features, mask) = make(name), batch
    together = head(features, mask)
    for row in range(B):
        alone = head(features[row : row + 1, : int(mask[row].sum())], None)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


def test_permuting_the_batch_permutes_the_embeddings(name, batch):
    head, (features, mask) = make(name), batch
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(head(features[order], mask[order]), head(features, mask)[order])


def test_gradients_reach_inputs_and_every_parameter_but_not_padding(name, batch):
    head, (features, mask) = make(name).train(), batch
    features.requires_grad_()
    head(features, mask)[:, :3].sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    for row in range(B):
        assert features.grad[row][mask[row]].abs().sum() > 0
    assert (features.grad[~mask] == 0).all()


def test_a_clip_without_frames_gives_finite_numbers(name, batch):
    features, mask = batch
    mask[2] = False
    assert make(name)(features, mask).isfinite().all()


def test_order_in_time_matters_exactly_where_it_should(name, batch):
    head, (features, _) = make(name), batch
    same = torch.allclose(head(features, None), head(features.flip(1), None), atol=1e-5)
    assert same == (name not in ORDERED)


def test_identity_keeps_the_space_it_gets():
    features = torch.tensor([[[[3.0, 4.0]], [[3.0, 4.0]]]])
    head = build(HEADS, "head", "identity", {"tokens": 1, "dim": 2, "embedding": 2}, {})
    torch.testing.assert_close(head(features), torch.tensor([[0.6, 0.8]]))
    with pytest.raises(OptionError, match="2 dims but embedding is 5; set it to 2"):
        build(HEADS, "head", "identity", {"tokens": 1, "dim": 2, "embedding": 5}, {})


def test_linear_by_hand():
    head = build(HEADS, "head", "linear", {"tokens": 1, "dim": 2, "embedding": 2}, {"bias": False})
    with torch.no_grad():
        head.out.weight.copy_(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    frames = torch.tensor(
        [[[[1.0, 0.0]], [[1.0, 2.0]], [[9.0, 9.0]]]]
    )  # mean of the first two: (1, 1) -> (3, 4)
    embedded = head(frames, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(embedded, torch.tensor([[0.6, 0.8]]))


def test_masked_mean_ignores_even_infinite_padding():
    values = torch.tensor([[[1.0], [3.0], [torch.inf]]])
    assert masked_mean(values, torch.tensor([[True, True, False]])).item() == 2


def test_resample_by_hand():
    ramp = torch.tensor([[[0.0], [10.0], [20.0], [99.0]]])
    mask = torch.tensor([[True, True, True, False]])
    assert resample(ramp, mask, 5).flatten().tolist() == [0, 5, 10, 15, 20]
    assert resample(ramp, mask, 1).flatten().tolist() == [0]
    middle_dropped = torch.tensor([[True, False, True, False]])
    assert resample(ramp, middle_dropped, 3).flatten().tolist() == [0, 10, 20]
    assert resample(ramp, None, 4) is ramp


def test_interpolate_never_touches_frames_beyond_the_last():
    values = torch.tensor([[[1.0], [2.0], [torch.nan]]])
    read = interpolate(values, torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1]]))
    assert read.flatten().tolist() == [1, 1.5, 2]


def test_unknown_heads_and_options_say_what_exists():
    with pytest.raises(UnknownNameError, match=r"no head named 'liner' .did you mean 'linear'"):
        make("liner")
    with pytest.raises(
        OptionError, match="head mlp: no option 'widht'; accepted: join, hidden, depth, dropout"
    ):
        make("mlp", widht=3)
    with pytest.raises(OptionError, match="head mlp: join: 'max' is unknown; accepted: auto, flatten, mean"):
        make("mlp", join="max")


def test_a_dotted_modality_has_a_head_like_any_other():
    heads = Heads({"ir.ceiling": HeadSpec("linear", N, D), "text": HeadSpec("mlp", 1, 4)}, E)
    features = {"ir.ceiling": torch.randn(2, T, N, D), "text": torch.randn(2, 1, 1, 4)}
    embedded = heads(features, {"ir.ceiling": None, "text": None})
    assert {name: tuple(value.shape) for name, value in embedded.items()} == {
        "ir.ceiling": (2, E),
        "text": (2, E),
    }


def test_a_centred_sequence_does_not_see_what_stays_the_same():
    torch.manual_seed(0)
    shape = {"tokens": 2, "dim": 3, "embedding": 8}
    head = build(HEADS, "head", "sequence", shape, {"steps": 6, "centre": True}).eval()
    features, constant = torch.randn(4, 9, 2, 3), 5 * torch.randn(4, 1, 2, 3)
    assert torch.allclose(head(features), head(features + constant), atol=1e-5)
    assert not torch.allclose(head(features), head(features.flip(1)), atol=1e-2)
