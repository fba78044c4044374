"""Counter-based random numbers: the value at a counter is a function of (key, counter) and nothing else.

So samples and initial weights do not depend on the number of ranks, the device, or what was drawn before
(design 3.1), and resuming needs no generator state. The mixer is SplitMix64's finaliser (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), in int64 arithmetic that wraps.
"""

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def stream_key(seed: int, *names: object) -> int:
    """An int64 key for one stream of numbers, from the seed and what the stream is for."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


Key = int | Tensor
"""Of a stream, or int64, of the stream that each counter is of."""


def random_bits(key: Key, counters: Tensor) -> Tensor:
    """64 random bits for each int64 counter, as int64 of the same shape."""
    bits = counters * _GOLDEN + key
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def random_integers(key: Key, counters: Tensor, bound: Tensor | int) -> Tensor:
    """Uniform integers in [0, bound) for each counter; the bias is below bound / 2**63."""
    return _shift_right(random_bits(key, counters), 1) % bound


def random_normal(key: int, rows: Tensor, dim: int) -> Tensor:
    """Standard normal float32 [len(rows), dim] for int64 row numbers of a table `dim` wide (Box-Muller)."""
    pairs = (dim + 1) // 2
    bits = random_bits(key, rows[:, None] * pairs + torch.arange(pairs, device=rows.device))
    radius = ((_shift_right(bits, 40).float() + 0.5) * 2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFF).float() * (2.0 * math.pi * 2.0**-24)
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal.view(len(rows), 2 * pairs)[:, :dim]


def permute(key: Key, positions: Tensor, size: int) -> Tensor:
    """A pseudorandom permutation of 0..size-1 applied to int64 positions, without a list of the elements.

    A Feistel network over a rectangle of about sqrt(size) x sqrt(size); the few values that fall outside
    0..size-1 are sent through again (cycle walking), which keeps it a bijection. A tensor of keys has a key for each
    position: that of the permutation it is of.
    """
    width = math.isqrt(max(size - 1, 0)) + 1
    height = -(-size // width)

    def once(key: Key, values: Tensor) -> Tensor:
        left, right = values // height, values % height
        for round_ in range(3):
            left = (left + random_integers(key + 2 * round_, right, width)) % width
            right = (right + random_integers(key + 2 * round_ + 1, left, height)) % height
        return left * height + right

    values = once(key, positions)
    while (outside := values >= size).any():
        values[outside] = once(key if isinstance(key, int) else key[outside], values[outside])
    return values
