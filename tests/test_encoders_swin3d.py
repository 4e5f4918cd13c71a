"""Swin's windows: against attention over all pairs of tokens, and which of them see each other."""

import itertools

import pytest
import torch
from torch.nn import functional

from encoders import swin3d
from encoders.swin3d import Block, Swin3D, shrink


def _all_pairs(block: Block, tokens: torch.Tensor) -> torch.Tensor:
    """What a block adds by attention, from scores between all tokens of the padded map: (B, D, H, W, C)."""
    size = tokens.shape[1:4]
    window, shift = shrink(block.window, block.shift, size)
    padding = [-side % one for side, one in zip(size, window, strict=True)]
    padded = functional.pad(block.norm1(tokens), [0, 0, 0, padding[2], 0, padding[1], 0, padding[0]])
    sides = torch.tensor(padded.shape[1:4])
    places = torch.cartesian_prod(*map(torch.arange, padded.shape[1:4])).view(-1, 3)
    shifted = (places - torch.tensor(shift)) % sides
    inside = ((shifted % torch.tensor(window)) * torch.tensor([window[1] * window[2], window[2], 1])).sum(1)
    index = block.attn.relative_position_index[inside[:, None], inside]
    together = (shifted // torch.tensor(window) == (shifted // torch.tensor(window))[:, None]).all(-1)
    # Neighbours by the cyclic shift only: as far apart as a window or more. Unshifted windows have none.
    apart = ((places - places[:, None]).abs() >= torch.tensor(window)).any(-1)
    flat = padded.flatten(1, 3)
    query, key, value = block.attn.qkv(flat).unflatten(2, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    scores = scores + block.attn.relative_position_bias_table[index].permute(2, 0, 1)
    scores = (scores - 100.0 * apart).masked_fill(~together, float("-inf"))
    mixed = block.attn.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    return mixed.view_as(padded)[:, : size[0], : size[1], : size[2]]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((4, 6, 6), (2, 3, 3)),
        ((3, 5, 7), (2, 3, 4)),  # padded along every axis
        ((2, 6, 5), (4, 3, 3)),  # time is shorter than the window
        ((1, 2, 6), (2, 4, 3)),  # so are time and height
        ((3, 2, 2), (1, 2, 2)),  # windows of one step
    ],
)
def test_a_block_is_attention_over_all_pairs_of_a_window(size, window, shifted):
    torch.manual_seed(0)
    shift = tuple(side // 2 if shifted else 0 for side in window)
    block = Block(8, 2, window, shift, 2.0, True).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    got_input = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    want_input = got_input.detach().clone().requires_grad_()
    got = block(got_input)
    added = want_input + _all_pairs(block, want_input)
    want = added + block.mlp(block.norm2(added))
    torch.testing.assert_close(got, want)
    weights = torch.randn_like(got)
    parameters = list(block.parameters())
    got_gradients = torch.autograd.grad((got * weights).sum(), [got_input, *parameters])
    want_gradients = torch.autograd.grad((want * weights).sum(), [want_input, *parameters])
    for got_one, want_one in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(got_one, want_one)


def test_patches_are_the_convolution_that_holds_their_weights():
    torch.manual_seed(0)
    trunk = Swin3D(6, (1,), (1,), (2, 2, 2), patch=(2, 3, 4)).double()
    pixels = torch.randn(2, 4, 3, 7, 10, dtype=torch.float64)
    padded = functional.pad(pixels, (0, 2, 0, 2, 0, 1))
    wanted = [
        one.norm(one.proj(part).movedim(1, -1))
        for one, part in ((trunk.patch_embed, padded[:, :3]), (trunk.depth_patch_embed, padded[:, 3:]))
    ]
    torch.testing.assert_close(trunk.embed(pixels), sum(wanted))
    torch.testing.assert_close(trunk.embed(pixels[:, :3]), wanted[0])


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 6, 6), (2, 3, 3), (1, 1, 1)),
        ((4, 6, 9), (4, 3, 3), (0, 1, 1)),
        ((6, 4, 4), (3, 4, 2), (1, 0, 1)),
        ((2, 4, 4), (2, 4, 4), (0, 0, 0)),
    ],
)
def test_tokens_see_those_of_their_window_that_were_near_before_the_shift(size, window, shift):
    windows = swin3d.arrange((2, *size), window, shift, torch.device("cpu"))
    assert torch.equal(windows.order[windows.inverse], torch.arange(2 * size[0] * size[1] * size[2]))
    places = torch.stack(torch.unravel_index(windows.order, (2, *size)), 1).split(windows.rows)
    seen = set()
    for group, mask in zip(places, windows.masks, strict=True):
        for tokens in group.view(-1, windows.tokens, 4):
            near = ((tokens[:, None] - tokens).abs() < torch.tensor([1, *window])).all(-1)
            assert torch.equal(near, torch.ones_like(near) if mask is None else mask == 0)
            shifted = (tokens[:, 1:] - torch.tensor(shift)) % torch.tensor(size) // torch.tensor(window)
            assert (shifted == shifted[0]).all()  # they are one window
            seen.add((int(tokens[0, 0]), *shifted[0].tolist()))
    counts = [side // one for side, one in zip(size, window, strict=True)]
    assert seen == set(itertools.product(range(2), *map(range, counts)))


def test_cached_arrangements_are_bounded():
    for side in range(4, 120, 2):
        swin3d.arrange((1, 2, side, 4), (2, 2, 2), (0, 0, 0), torch.device("cpu"))
    info = swin3d.arrange.cache_info()
    assert info.currsize <= info.maxsize <= 64
