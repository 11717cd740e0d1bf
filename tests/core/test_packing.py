"""Rows, the rectangle that attention needs, and the way between them."""

import pytest
import torch

from lora_gpt.core.packing import Packing, Rectangle


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2], [1]], ids=str)
def test_unpad_is_the_inverse_of_pad(lengths):
    """Rows come back as they were, pads are zeros, and positions count from each start."""
    packing, rows = Packing(lengths), torch.randn(sum(lengths), 6)
    padded = packing.pad(rows)
    assert padded.shape == (len(lengths), max(lengths), 6)
    assert torch.equal(packing.unpad(padded), rows)
    for sequence, length in enumerate(lengths):
        assert not padded[sequence, length:].any()
    assert packing.positions.tolist() == [i for length in lengths for i in range(length)]
    assert [rows[i].tolist() for i in packing.last] == [
        padded[sequence, length - 1].tolist() for sequence, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("lengths", [[], [3, 0]], ids=str)
def test_an_empty_sequence_is_refused(lengths):
    """Every sequence has a last token, because that is where it is classified."""
    with pytest.raises(ValueError, match="at least one token"):
        Packing(lengths)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("lengths", [[3, 1, 4], [8], [2, 2]], ids=str)
def test_rows_of_heads_go_where_pad_and_unpad_take_them(lengths, multiple):
    """The numbers of `heads` say in one gathering what padding and splitting heads do in steps."""
    packing = Packing(lengths, multiple=multiple)
    heads, size = packing.heads(3), 5
    rows = torch.randn(packing.rows, 3 * 3 * size)  # query, key and value of three heads
    found = rows.view(-1, size)[heads.spread].view(3, packing.batch, 3, packing.width, size)
    padded = packing.pad(rows).view(packing.batch, packing.width, 3, 3, size)
    expected = padded.permute(2, 0, 3, 1, 4)
    for sequence, length in enumerate(lengths):
        real = (slice(None), sequence, slice(None), slice(length))
        assert torch.equal(found[real], expected[real])
    back = found[0].reshape(-1, size)[heads.collected].view(packing.rows, -1)
    thrice = found.reshape(-1, size)[heads.collected_thrice].view(packing.rows, -1)
    real = packing.real_rows
    assert torch.equal(back[:real], rows[:real, : 3 * size])
    assert torch.equal(thrice[:real], rows[:real])


def test_a_rectangle_is_a_packing_of_equal_lengths():
    """Whatever the real lengths are: its pads are rows like others."""
    whole, rectangle = Packing([4, 4]), Rectangle(torch.tensor([2, 4]), 4)
    assert rectangle.last.tolist() == [1, 7] and rectangle.real_rows == whole.real_rows
    assert torch.equal(rectangle.positions, whole.positions)
    both = (vars(packing.heads(2)).values() for packing in (whole, rectangle))
    for mine, theirs in zip(*both, strict=True):
        assert torch.equal(mine, theirs)


def test_rows_of_heads_are_made_once():
    packing = Packing([3, 2])
    assert packing.heads(4) is packing.heads(4) is not packing.heads(2)
