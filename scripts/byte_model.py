"""A small byte-level transformer of Python's standard library: RoPE, RMSNorm, SwiGLU.

`train_bytes.py` trains it, `check_bytes.py` decodes with it over FP4 caches.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).resolve().parents[1] / "models" / "bytes"
WEIGHTS, HELD_OUT = FOLDER / "weights.safetensors", FOLDER / "held_out.bin"
CONTEXT = 256  # bytes that a prediction sees at most
# (layer, q [B, S, heads, D], k and v [B, S, kv_heads, D]) → what heads read, as q
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# no tests, which some distributions leave out, and no generated tables, which are too easy
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
}
_SHARE = 16  # one file of so many is held out


@dataclass(frozen=True)
class Shape:
    layers: int = 3
    width: int = 256
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    hidden: int = 512
    dropout: float = 0.5  # of what heads read: no prediction then hangs on a few of its values


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.before_attention, self.before_mlp = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.qkv = nn.Linear(shape.width, rows, bias=False)
        self.out = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.up = nn.Linear(shape.width, 2 * shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        at = self.shape
        parts = self.qkv(self.before_attention(x)).unflatten(-1, (-1, at.head_dim))
        q, k, v = parts.split((at.heads, at.kv_heads, at.kv_heads), 2)
        read = attend(self.layer, turned(q, turns), turned(k, turns), v)
        read = functional.dropout(read.flatten(2), at.dropout, self.training)
        x = x + self.out(read)
        gate, up = self.up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class ByteModel(nn.Module):
    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape or Shape()
        self.embedding = nn.Embedding(256, self.shape.width)  # of inputs and, transposed, outputs
        self.blocks = nn.ModuleList(Block(self.shape, i) for i in range(self.shape.layers))
        self.last = nn.RMSNorm(self.shape.width)
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                small = name == "embedding.weight"  # else it predicts the byte that it has read
                nn.init.normal_(weight, std=0.02 if small else self.shape.width**-0.5)

    def forward(self, text: Tensor, attend: Attend | None = None, start: int = 0) -> Tensor:
        """Logits [B, S, 256] of the byte after each of `text` [B, S], whose first is at `start`."""
        turns = angles(self.shape.head_dim, start, text.shape[1])
        x = self.embedding(text)
        for block in self.blocks:
            x = block(x, turns, attend or causal)
        return functional.linear(self.last(x), self.embedding.weight)


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def angles(head_dim: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [count, 1, head_dim / 2] of RoPE."""
    rates = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    at = torch.arange(start, start + count)[:, None, None] * rates
    return at.cos(), at.sin()


def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE of x [B, S, heads, D]: value i with value i + D/2."""
    (cos, sin), (a, b) = turns, x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


def split(library: Path | None = None) -> tuple[bytes, bytes]:
    """Training and held-out text: the sources of this Python, whole files one after the other."""
    library = library or Path(sysconfig.get_path("stdlib"))
    train, held = bytearray(), bytearray()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not _LEFT_OUT & set(name.parts):
            place = hashlib.sha256(name.as_posix().encode()).digest()[0] % _SHARE
            (train if place else held).extend(path.read_bytes())
    return bytes(train), bytes(held)


def windows(text: bytes, count: int) -> Tensor:
    """int64 [count, CONTEXT + 1], evenly over `text`."""
    starts = [(len(text) - CONTEXT - 1) * i // max(count - 1, 1) for i in range(count)]
    return torch.tensor([list(text[at : at + CONTEXT + 1]) for at in starts])


def bits(logits: Tensor, text: Tensor) -> Tensor:
    """Mean bits for a byte of text [B, S + 1] by logits [B, S, 256]."""
    nats = functional.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
    return nats / torch.log(torch.tensor(2.0))
