"""Layers that replace torch's for speed, against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eupmim_dist.models.layers.attention import MASKED, multi_head_attention, softmax_
from eupmim_dist.models.layers.dropout import Dropout
from eupmim_dist.models.layers.transformer import ReLUDropout, TransformerEncoder


def test_encoder_is_torchs_encoder() -> None:
    ours = TransformerEncoder(16, 2, 4, dropout=0.1).double().eval()
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.1, "relu", batch_first=True, norm_first=False)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        mine.attention.qkv.weight.data.copy_(other.self_attn.in_proj_weight.normal_())
        mine.attention.qkv.bias.data.copy_(other.self_attn.in_proj_bias.normal_())
        mine.attention.out.load_state_dict(other.self_attn.out_proj.state_dict())
        for name in ("norm1", "norm2", "linear1", "linear2"):
            getattr(mine, name).load_state_dict(getattr(other, name).state_dict())
    x = torch.randn(5, 7, 16, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor([7, 3, 1, 5, 6])[:, None]).double()
    expected = theirs(x, src_key_padding_mask=mask == 0)
    got = ours(x, mask)
    torch.testing.assert_close(got * mask[..., None], expected * mask[..., None])


test_encoder_is_torchs_encoder = torch.no_grad()(test_encoder_is_torchs_encoder)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_cpu_attention_and_its_gradient_are_torchs(num_heads: int) -> None:
    qkv = (3 * torch.randn(6, 5, 3 * 8, dtype=torch.float64)).requires_grad_()
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 5, 2, 4])[:, None]).double()
    before = qkv.detach().clone()
    ours = multi_head_attention(qkv, mask, num_heads, dropout=0.0)
    assert torch.equal(qkv, before)
    query, key, value = qkv.view(6, 5, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    bias = torch.where(mask > 0, 0.0, -1e9).double()[:, None, None]
    theirs = F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).reshape(6, 5, 8)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    [mine], [other] = (torch.autograd.grad(out, qkv, upstream) for out in (ours, theirs))
    torch.testing.assert_close(mine, other)


def test_the_path_for_gpus_and_bfloat16_is_the_same_attention() -> None:
    qkv = torch.randn(6, 5, 3 * 8)
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 5, 2, 4])[:, None]).float()
    ours = multi_head_attention(qkv, mask, 2, dropout=0.0)
    low = multi_head_attention(qkv.bfloat16(), mask, 2, dropout=0.0)
    torch.testing.assert_close(low.float(), ours, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("layer", ["attention", "relu"])
def test_gradients_with_dropout_are_those_of_what_was_computed(layer: str) -> None:
    x = torch.randn(2, 3, 3 * 4, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.float64)

    def same_draws(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return multi_head_attention(x, mask, 2, dropout=0.4) if layer == "attention" else ReLUDropout(0.4)(x)

    assert (same_draws(x) == 0).any() or layer == "attention"
    assert torch.autograd.gradcheck(same_draws, (x,))


def test_relu_dropout_is_dropout_of_relu() -> None:
    x = torch.randn(50, 40)
    torch.manual_seed(0)
    fused = ReLUDropout(0.3)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(fused, Dropout(0.3)(x.relu()))


def test_what_is_masked_has_no_weight() -> None:
    """And a weight of 1e-30 is one, where exp is given what does not underflow."""
    scores = torch.tensor([[3.0, MASKED, 1.0], [MASKED, MASKED, -5.0], [MASKED] * 3, [0.0, -69.0, -104.0]])
    weights = softmax_(scores.clone())
    assert torch.equal(weights == 0, scores.softmax(-1) < 1e-40)
    torch.testing.assert_close(weights, scores.softmax(-1), rtol=1e-6, atol=1e-40)


def test_softmax_stays_finite_at_extremes() -> None:
    extreme = torch.tensor([[1e4, -1e9, 0.0], [-1e9, -1e9, -1e9]])
    torch.testing.assert_close(softmax_(extreme.clone()), extreme.softmax(-1))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 1003, requires_grad=True)
    out = Dropout(p)(x)
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-17
    assert abs(out.double().mean().item() - 1.0) < 0.01
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # the same elements, the same scale


def test_dropout_follows_the_seed_and_is_off_in_evaluation() -> None:
    layer, x = Dropout(0.5), torch.randn(7, 3)
    torch.manual_seed(1)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert layer.eval()(x) is x
