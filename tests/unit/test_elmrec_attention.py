"""The attention of T5's encoder against transformers' own, its gradients against differences, its dropout against
the formula with the same draws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eupmim_dist.models.elmrec import attention
from eupmim_dist.models.elmrec.attention import _Attention, _Draws, attend

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
B, H, Q, K, WIDTH = 3, 2, 5, 7, 4


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    query = torch.randn(B, H, Q, WIDTH, dtype=torch.float64).to(dtype)
    key, value = (torch.randn(B, H, K, WIDTH, dtype=torch.float64).to(dtype) for _ in range(2))
    bias = torch.randn(1, H, Q, K, dtype=torch.float64)
    return query, key, value, bias.float() if dtype == torch.bfloat16 else bias


def masks() -> list[Tensor | None]:
    padding = torch.ones(B, 1, 1, K, dtype=torch.bool)
    padding[0, ..., 4:] = False
    padding[2, ..., 1:] = False
    by_query = torch.ones(B, 1, Q, K, dtype=torch.bool).tril(2)
    return [None, padding, by_query & padding]


def with_gradients(function: Callable[..., Any], mask: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    tensors = [tensor.requires_grad_() for tensor in given(dtype)]
    query, key, value, bias = tensors
    module = nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    found = function(module, query, key, value, mask, scaling=1.0, position_bias=bias)[0]
    (found * torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)).sum().backward()
    return [found, *(tensor.grad for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("mask", masks(), ids=["whole", "padding", "by query"])
@pytest.mark.parametrize("samples", [1, 2, B])
def test_it_is_transformers_attention(samples: int, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    monkeypatch.setattr(attention, "AT_A_TIME", samples * H * Q * K)
    expected = with_gradients(sdpa_attention_forward, mask, torch.float64)
    found = with_gradients(attend, mask, torch.float64)
    assert len(found) == 5
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    short = with_gradients(attend, mask, torch.bfloat16)
    for one, whole in zip(short, expected, strict=True):
        torch.testing.assert_close(one.double(), whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("samples", [1, 2, B])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_its_gradients_are_those_of_what_it_computes(
    dropout: float, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "AT_A_TIME", samples * H * Q * K)
    query, key, value, bias = (tensor.requires_grad_() for tensor in given())
    mask = masks()[1]
    assert mask is not None

    def attended(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        found: Tensor = _Attention.apply(*tensors, mask[:, 0], dropout)
        return found

    assert torch.autograd.gradcheck(attended, (query, key, value, bias[0]))


@pytest.mark.parametrize("samples", [1, 2, B])
def test_dropout_leaves_out_weights_of_the_softmax(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "AT_A_TIME", samples * H * Q * K)
    query, key, value, bias = given()
    torch.manual_seed(3)
    found = _Attention.apply(query, key, value, bias[0], None, 0.25)
    torch.manual_seed(3)
    draws = _Draws(int(torch.randint(1 << 62, ())), 0.25)
    weights = (query @ key.transpose(2, 3) + bias).softmax(-1)
    kept = torch.cat([draws.kept(weights[first : first + samples]) for first in range(0, B, samples)])
    assert not torch.equal(kept[0], kept[1]), "each sample has its own"
    torch.testing.assert_close(found, (weights * kept) @ value)


def test_dropout_is_as_frequent_as_it_is_said() -> None:
    kept = _Draws(5, 0.1).kept(torch.empty(1000, 1000))
    assert float((kept == 0).float().mean()) == pytest.approx(0.1, abs=0.001)
    assert float(kept.max()) == pytest.approx(1 / 0.9, rel=1e-4)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.001)
