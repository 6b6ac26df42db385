"""Attention: the fused kernel, and the products that take its place where it goes backward slowly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refinesam.models.layers import attention


def drawn(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of 5 queries on 7 keys, and which keys count: never none."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, tokens, 16, dtype=dtype, requires_grad=True) for tokens in (5, 7, 7)]
    attended = torch.rand(2, 1, 1, 7) > 0.4
    attended[..., 0] = True
    return qkv, attended


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_the_same_in_bfloat16(masked: bool) -> None:
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        qkv, attended = drawn(dtype)
        out = attention(*qkv, attended if masked else None)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        answers.append([out.float(), *(one.grad.float() for one in qkv if one.grad is not None)])
    assert len(answers[0]) == len(answers[1]) == 4
    for expected, found in zip(*answers, strict=True):
        # Two digits are what bfloat16 has.
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03 * expected.abs().max().item())


def test_keys_that_do_not_count_get_no_gradient() -> None:
    (q, k, v), attended = drawn(torch.bfloat16)
    attention(q, k, v, attended).float().square().sum().backward()
    left_out = ~attended.expand(2, 3, 1, 7).squeeze(2)
    for one in (k, v):
        assert one.grad is not None
        assert (one.grad[left_out] == 0).all()
        assert (one.grad[~left_out] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_the_kernel_is_the_fused_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), attended = drawn(dtype)
    asked = []

    def recorded(*tensors: Tensor, attn_mask: Tensor | None) -> Tensor:
        asked.append(attn_mask)
        return tensors[2]

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    attention(q.detach(), k, v, attended)
    assert asked == [attended]
    attention(q, k, v, attended)
    assert len(asked) == 1 + (dtype == torch.float32)
