"""Bad input gets one sentence that names the argument, what came and what is accepted."""

from __future__ import annotations

import pytest
import torch
from opcases import DEVICE

from axnet import functional as AF
from axnet import nn as axnn

X = torch.zeros(2, 3, 4, 4, device=DEVICE)
MASK = torch.zeros(2, 1, 4, 4, device=DEVICE)
NAN_MASK = torch.full((2, 1, 4, 4), float("nan"), device=DEVICE)


def gate(pool):
    return torch.zeros_like(pool.masked_avg)


def attention(x=X, mask=MASK, **options):
    return AF.anatomy_attention(x, mask, options.pop("gate", gate), **options)


CASES = [
    (lambda: attention(x=[1.0]), TypeError, r"x is a list, expected a tensor"),
    (lambda: attention(x=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), TypeError, r"x has dtype torch.int32, expected"),
    (lambda: attention(x=torch.zeros(3, 4, 4)), ValueError, r"x has shape \[3, 4, 4\], expected four dimensions"),
    (lambda: attention(x=torch.zeros(2, 3, 0, 4)), ValueError, r"x has shape .*at least one channel and one pixel"),
    (lambda: attention(mask=torch.zeros(2, 4, 4)), ValueError, r"mask has shape \[2, 4, 4\], expected four dimensions"),
    (lambda: attention(mask=torch.zeros(1, 1, 4, 4)), ValueError, r"mask has a batch of 1, expected that of x, 2"),
    (lambda: attention(mask=torch.zeros(2, 17, 4, 4)), ValueError, r"mask has 17 anatomies .*expected 1 to 16"),
    (lambda: attention(mask=torch.zeros(2, 0, 4, 4)), ValueError, r"mask has 0 anatomies .*expected 1 to 16"),
    (lambda: attention(mask=NAN_MASK), ValueError, r"mask has NaN, expected values in \[0, 1\]"),
    (lambda: attention(mask=NAN_MASK.nan_to_num(float("inf"))), ValueError, r"mask has values from inf to inf"),
    (lambda: attention(mask=MASK - 1), ValueError, r"mask has values from -1 to -1, expected values in \[0, 1\]"),
    (lambda: attention(x=X.to_sparse()), TypeError, r"x is a torch.sparse_coo tensor, expected a dense one"),
    (lambda: attention(x=X.cpu().to_mkldnn()), TypeError, r"x is a torch._mkldnn tensor, expected a dense one"),
    (lambda: AF.pwap(torch.nested.nested_tensor(list(X)), X[0, :, 0]), TypeError, r"x is a nested tensor, expected a"),
    (lambda: attention(mask=MASK.to_sparse()), TypeError, r"mask is a torch.sparse_coo tensor, expected a dense one"),
    (lambda: attention(mask=MASK.long()), TypeError, r"mask has dtype torch.int64, expected a floating type, bool"),
    (lambda: attention(mask=MASK.to("meta")), ValueError, rf"mask is on meta, expected the device of x, {X.device}"),
    (lambda: attention(fusion="sum"), ValueError, r"fusion is 'sum', expected 'mean' or 'concat'"),
    (lambda: attention(weight=torch.ones(4)), ValueError, r"weight has shape \[4\], expected \[3\]"),
    (lambda: attention(weight=torch.ones(3).int()), TypeError, r"weight has dtype torch.int32, expected a floating"),
    (lambda: attention(bias=torch.ones(3, device="meta")), ValueError, r"bias is on meta, expected the device of x"),
    (lambda: attention(running_mean=torch.ones(3)), ValueError, r"only running_mean was given"),
    (lambda: attention(gate=lambda p: p.avg), ValueError, r"gate returned .* expected a floating type of shape"),
    (
        lambda: attention(x=X[:1, :, :1, :1], mask=MASK[:1, :, :1, :1], training=True),
        ValueError,
        r"Expected more than 1 value per channel when training",
    ),
    (lambda: AF.pwap(X, torch.zeros(0, 3)), ValueError, r"weight has K = 0 maps, expected 1 to 64"),
    (lambda: AF.pwap(X, torch.zeros(65, 3)), ValueError, r"weight has K = 65 maps, expected 1 to 64"),
    (lambda: AF.pwap(X, torch.zeros(2, 5)), ValueError, r"weight has shape \[2, 5\], expected \[K, 3\]"),
    (lambda: AF.pwap(X, torch.zeros(2, 3).int()), TypeError, r"weight has dtype torch.int32, expected a floating"),
    (lambda: AF.pwap(X, torch.zeros(2, 3), torch.zeros(3)), ValueError, r"bias has shape \[3\], expected \[2\]"),
    (lambda: AF.pwap(X, torch.zeros(2, 3, device="meta")), ValueError, r"weight is on meta, expected the device of x"),
    (lambda: axnn.PWAP(3, 0), ValueError, r"num_maps is 0, expected a whole number, 1 to 64"),
    (lambda: axnn.PCAMHead(3, 65), ValueError, r"num_classes is 65, expected a whole number, 1 to 64"),
    (lambda: axnn.PWAP(4)(X), ValueError, r"x has 3 channels .*expected 4"),
    (lambda: axnn.AnatomyAwareAttention(4)(X, MASK), ValueError, r"x has 3 channels .*expected 4"),
    (lambda: axnn.AnatomyAwareAttention(3)(X, MASK), ValueError, r"mask has 1 anatomies .*expected 2"),
    (lambda: axnn.AnatomyAwareAttention(3, 17), ValueError, r"num_anatomies is 17, expected a whole number, 1 to 16"),
    (lambda: axnn.AnatomyAwareAttention(3, reduction=0), ValueError, r"reduction is 0, expected a number above 0"),
    (lambda: axnn.AnatomyAwareAttention(3, dropout=1.0), ValueError, r"dropout is 1.0, expected a probability"),
    (lambda: axnn.MaskedAttention(0), ValueError, r"channels is 0, expected a whole number, 1 or more"),
    (lambda: axnn.MaskedAttention(3)(X, MASK.expand(2, 2, 4, 4)), ValueError, r"mask has 2 anatomies .*expected 1"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_one_sentence(number):
    call, error, words = CASES[number]
    if DEVICE != "cpu" and words.startswith(("mask has NaN", "mask has values")):
        pytest.skip("a GPU is not waited for to read values")
    with pytest.raises(error, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith((".", "x."))
