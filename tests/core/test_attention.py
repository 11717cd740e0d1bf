"""Our attention for short sequences against PyTorch's own, and where each is taken."""

import pytest
import torch
import torch.nn.functional as F

from lora_gpt.core import attention
from lora_gpt.core.attention import causal_attention
from lora_gpt.core.packing import Packing, Rectangle

HEADS, SIZE = 3, 8
BATCHES = {
    "pads": Packing([7, 1, 12]),
    "pads and filler": Packing([7, 1, 12], multiple=16),
    "no pads": Packing([9, 9]),
    "one token": Packing([1]),
    "rectangle": Rectangle(torch.tensor([3, 6]), 6),
}


@pytest.fixture(params=BATCHES.values(), ids=BATCHES)
def packing(request):
    return request.param


def rows_of(packing, dtype=torch.float32):
    torch.manual_seed(packing.rows)
    return torch.randn(packing.rows, 3 * HEADS * SIZE, dtype=dtype, requires_grad=True)


def by_hand(together, packing):
    """Softmax over the tokens so far, sequence by sequence and head by head; filler is left out."""
    if isinstance(packing, Rectangle):
        lengths = [packing.width] * packing.batch
    else:
        lengths = torch.diff(packing.last, prepend=torch.tensor([-1])).tolist()
    found = []
    for rows in together[: sum(lengths)].split(lengths):
        query, key, value = rows.view(len(rows), 3, HEADS, SIZE).unbind(1)
        scores = torch.einsum("qhs,khs->hqk", query, key) / SIZE**0.5
        weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
        found.append(torch.einsum("hqk,khs->qhs", weights, value).flatten(1))
    return torch.cat(found)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "PyTorch's"])
def test_both_ways_are_attention(packing, ours, monkeypatch):
    """Values and gradients of every real row."""
    monkeypatch.setattr(attention, "SHORT_ELSE", 512 if ours else 0)
    together = rows_of(packing)
    expected = by_hand(together, packing)
    real = len(expected)
    (wanted,) = torch.autograd.grad(expected.square().sum(), together)
    found = causal_attention(together, packing, HEADS)
    (gradient,) = torch.autograd.grad(found[:real].square().sum(), together)
    torch.testing.assert_close(found[:real], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_finite_differences(packing):
    """In float64, and none reaches a filler row."""
    together, real = rows_of(packing, torch.float64), packing.real_rows

    def of_real_rows(rows):
        return causal_attention(rows, packing, HEADS)[:real]

    assert torch.autograd.gradcheck(of_real_rows, together)
    of_real_rows(together).sum().backward()
    assert together.grad[:real].any() and not together.grad[real:].any()


@pytest.mark.parametrize("width", [1, 7, 64])
def test_bfloat16_is_near(width):
    packing = Packing([width] * 2)
    plain = rows_of(packing)
    narrow = plain.detach().bfloat16().requires_grad_()
    expected, found = (causal_attention(each, packing, HEADS) for each in (plain, narrow))
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    expected.square().sum().backward()
    found.float().square().sum().backward()
    torch.testing.assert_close(narrow.grad.float(), plain.grad, rtol=0.1, atol=0.2)


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({}, True),
        ({"dtype": torch.bfloat16}, True),
        ({"length": 193}, False),
        ({"length": 193, "dtype": torch.bfloat16}, True),
        ({"length": 513, "dtype": torch.bfloat16}, False),
        ({"dropout": 0.1}, False),
        ({"grad": False}, False),
    ],
    ids=str,
)
def test_ours_is_taken_where_it_is_faster(changes, ours, monkeypatch):
    """In training and for short messages; dropout is left to PyTorch."""
    called, own = [], F.scaled_dot_product_attention

    def theirs(*given, **named):
        called.append(given)
        return own(*given, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    packing = Packing([changes.get("length", 192)])
    together = rows_of(packing, changes.get("dtype", torch.float32))
    with torch.set_grad_enabled(changes.get("grad", True)):
        causal_attention(together, packing, HEADS, changes.get("dropout", 0.0))
    assert (not called) == ours
