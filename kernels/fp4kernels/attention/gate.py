"""The gate of attention: a kernel's output against float64 over the same dequantized operands.

Decoding, elementwise, with s = scale q kᵀ, p = softmax(s) and L = sum exp(s - max s) of n keys:

    ds        = scale (query max|q| sum|k| + (product + c(D) u) sum|q||k|)
    |O - ref| <= u_out |ref| + (2 ds + weight + c(n) u) sum p|v| + least n / L (max|v| + |ref|)
    |LSE - ref| <= ds + c(n) u (1 + |ref|) + least n / L

where u = 2^-24, c(m) = 4 (1 + log2 m), and query, product, weight and least are what the variant
declares to round: a score that is off by ds moves every weight by twice that share, at most.

P of prefill is rounded to FP4, where the last bit of an exponential decides between neighbours, so
prefill is held against its simulation with the same tiles, by energy: the root mean square of the
error may be that of the output's own rounding and of PREFILL_ERROR. LSE is elementwise there, too.

Outputs are run with two fills and between guards, and fresh scratch is poisoned, as in the gate of
products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fp4kernels import guard
from fp4kernels.attention.problem import Mask, MaskKind
from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.storing import gathered
from fp4kernels.attention.variant import AttentionLauncher, Launched, Paged, Quantized, Rounding
from fp4kernels.gate import FILLS, OUTPUT_UNIT, Outcome
from fp4kernels.transforms import transformed

UNIT = 2.0**-24  # of float32
# of the output's root mean square: float32 sums in another order move few values of P across a tie
PREFILL_ERROR = 10 ** (-70 / 20)
PREFILL_LSE = 1e-4


@dataclass(frozen=True, eq=False)
class Exact:
    """One sequence in float64, and what bounds a kernel's error; rows are queries."""

    out: Tensor  # [Sq, heads, D]
    lse: Tensor  # [heads, Sq]
    products: Tensor  # [Sq, heads]: the largest sum |q||k| of all keys, scaled
    sums: Tensor  # [Sq, heads]: max|q| times the largest sum |k|, scaled
    spread: Tensor  # [Sq, heads, D]: sum p|v|
    flatness: Tensor  # [Sq, heads]: n / L, which is 1 where all keys weigh the same
    largest: Tensor  # [heads]: max|v|
    keys: int

    def allowed(self, rounding: Rounding, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The bounds of O and LSE."""
        score = rounding.query * self.sums
        score = score + (rounding.product + steps(self.out.shape[-1]) * UNIT) * self.products
        summing = steps(self.keys) * UNIT
        least = rounding.least * self.flatness
        out = OUTPUT_UNIT[dtype] * self.out.abs()
        out += (2 * score + rounding.weight + summing)[..., None] * self.spread
        out += least[..., None] * (self.largest[:, None] + self.out.abs())
        lse = (score + least).T + summing * (1 + self.lse.abs().nan_to_num(posinf=0.0))
        return out, lse


@dataclass(frozen=True, eq=False)
class Case:
    """One input of the gate. `sequences` are those that decoding compares, by their exact results;
    prefill makes its own for every size of tile."""

    name: str
    recipe: AttentionRecipe
    on: Launched
    dtype: torch.dtype  # of the output
    out_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    exact: dict[int, Exact]

    @property
    def device(self) -> torch.device:
        return (self.on.q if isinstance(self.on, Paged) else self.on.operands.q.codes).device


def steps(count: int) -> float:
    """How many roundings a sum of so many may stand for."""
    return 4 * (1 + math.log2(count))


def decode_case(
    name: str, recipe: AttentionRecipe, on: Paged, dtype: torch.dtype, compared: Sequence[int]
) -> Case:
    """Over what the cache's tensors hold; q is of `dtype`."""
    queries = transformed(on.q, recipe.rotation(on.q.shape[-1]))[0]
    lengths = on.lengths.tolist()
    exact = {one: _over_pages(on, recipe, queries[one], one, lengths[one]) for one in compared}
    sequences, count, heads, _ = on.q.shape
    return Case(
        name, recipe, on, dtype, tuple(on.q.shape), (sequences, heads, count), exact
    )  # fmt: skip


def prefill_case(
    name: str, recipe: AttentionRecipe, on: Quantized, dtype: torch.dtype, head_dim: int
) -> Case:
    """Over quantized operands."""
    tokens, heads = on.operands.places.segments.q[-1], on.operands.q.codes.shape[0]
    return Case(name, recipe, on, dtype, (tokens, heads, head_dim), (heads, tokens), {})


def check(
    launch: AttentionLauncher,
    rounding: Rounding,
    case: Case,
    tile: int | None = None,
    expendable: bool = False,
) -> Outcome:
    """Run `launch` on `case`; `tile` are the keys under which prefill rounds P at once.

    In an `expendable` process CPU outputs lie beside forbidden pages: a write beyond kills it.
    """
    used, judged = 0.0, None
    for fill in FILLS:
        buffers = [
            _guarded(shape, dtype, case.device, expendable, at_end=fill is FILLS[0])
            for shape, dtype in ((case.out_shape, case.dtype), (case.lse_shape, torch.float32))
        ]
        out, lse = (
            buffer.out.fill_(fill).view(shape)
            for buffer, shape in zip(buffers, (case.out_shape, case.lse_shape), strict=True)
        )
        with guard.poisoned_scratch():
            launch(case.on, out, lse)
        if not all(buffer.intact for buffer in buffers):
            return Outcome(math.inf, f"wrote outside its outputs on {case.name}")
        if judged is not None and torch.equal(out, judged[0]) and torch.equal(lse, judged[1]):
            break  # the same values again, and none is NaN
        judged = out, lse
        if isinstance(case.on, Paged):
            outcome = _judge_decode(case, rounding, out, lse)
        else:
            outcome = _judge_prefill(case, case.on, out, lse, tile)
        if outcome.why is not None:
            return Outcome(math.inf, f"{outcome.why} (buffers filled with {fill})")
        used = max(used, outcome.used)
    return Outcome(used, None)


def _judge_decode(case: Case, rounding: Rounding, out: Tensor, lse: Tensor) -> Outcome:
    used = 0.0
    for sequence, exact in case.exact.items():
        bounds = exact.allowed(rounding, case.dtype)
        found = (out[sequence].double(), lse[sequence].double())
        wanted = (exact.out, exact.lse)
        for what, got, want, bound in zip(("O", "LSE"), found, wanted, bounds, strict=True):
            same = (got == want) | (got.isnan() & want.isnan())  # -inf where nothing is seen
            error = (got - want).abs()
            wrong = ~((error <= bound) | same)
            if wrong.any():
                at = wrong.nonzero()[0].tolist()
                where = tuple(at)
                return Outcome(math.inf, (
                    f"{int(wrong.sum())} of {wrong.numel()} elements of {what} outside the gate on "
                    f"{case.name}; first at {[sequence, *at]}: got {float(got[where]):.6g}, expected "
                    f"{float(want[where]):.6g} within {float(bound[where]):.3g}"
                ))  # fmt: skip
            shares = (error / bound).masked_fill(same, 0.0)
            used = max(used, float(shares.max()))
    return Outcome(used, None)


def _judge_prefill(
    case: Case, on: Quantized, out: Tensor, lse: Tensor, tile: int | None
) -> Outcome:
    head_dim = case.out_shape[-1]
    how = {} if tile is None else {"block_n": tile}
    want, want_lse = simulate(on.operands, case.recipe, on.mask, on.scale, head_dim, **how)
    error = float((out.double() - want.double()).square().mean().sqrt())
    # half a unit at most, evenly spread: a third of its square on average
    rounding = OUTPUT_UNIT[case.dtype] / math.sqrt(3)
    norm = float(want.double().square().mean().sqrt())
    bound = math.hypot(rounding, PREFILL_ERROR) * norm
    same = lse == want_lse
    apart = float((lse - want_lse).abs().masked_fill(same, 0.0).max())
    if not (error <= bound and apart <= PREFILL_LSE):  # NaN is wrong
        return Outcome(math.inf, (
            f"off by {error:.3g} of {norm:.3g} and LSE by {apart:.3g} on {case.name}, outside the "
            f"gate of {bound:.3g} and {PREFILL_LSE:g}"
        ))  # fmt: skip
    return Outcome(max(error / bound if bound else 0.0, apart / PREFILL_LSE), None)


def exact_of(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Exact:
    """q [Sq, heads, D] over k and v [keys, kv_heads, D]; `seen` [Sq, keys] is each query's keys."""
    queries, heads, _ = q.shape
    keys, kv_heads, _ = k.shape
    group = heads // kv_heads
    if not keys:
        zeros = torch.zeros(queries, heads, dtype=torch.float64, device=q.device)
        empty = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
        return Exact(empty, zeros.T - math.inf, zeros, zeros, empty, zeros, zeros[0], 1)
    seen = seen.repeat_interleave(group, 0)
    parts = []
    for head in range(kv_heads):  # all in float64 at once would be too much
        mine = q[:, head * group : (head + 1) * group].double().flatten(0, 1)  # [Sq * group, D]
        x, y = k[:, head].double(), v[:, head].double()
        scores = (mine @ x.T * scale).masked_fill(~seen, -math.inf)
        lse = scores.logsumexp(-1)
        p = (scores - lse[:, None]).exp()
        products = (mine.abs() @ x.abs().T).amax(-1) * scale
        sums = mine.abs().amax(-1) * x.abs().sum(-1).max() * scale
        flatness = seen.sum(-1) * p.amax(-1)
        each = (p @ y, lse, products, sums, p @ y.abs(), flatness)
        parts.append([one.reshape(queries, group, *one.shape[1:]) for one in each])
    out, lse, products, sums, spread, flatness = (
        torch.cat(each, 1) for each in zip(*parts, strict=True)
    )
    largest = v.double().abs().amax((0, 2)).repeat_interleave(group)
    return Exact(out, lse.T, products, sums, spread, flatness, largest, keys)


def _over_pages(on: Paged, recipe: AttentionRecipe, q: Tensor, sequence: int, length: int) -> Exact:
    """`q` [Sq, heads, D] of one sequence, turned as K is held."""
    pages = on.page_table[sequence]
    k, v = (
        gathered(held, how, pages, length, on.order)
        for held, how in ((on.keys, recipe.k), (on.values, recipe.v))
    )
    mask = Mask(MaskKind.SLIDING, on.window) if on.window else Mask(MaskKind.CAUSAL)
    return exact_of(q, k, v, mask.visible(len(q), length, q.device), on.scale)


def _guarded(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, expendable: bool, at_end: bool
) -> guard.GuardedOutput:
    flat = (math.prod(shape[:-1]), shape[-1])
    if expendable and device.type == "cpu":
        return guard.fenced(flat, dtype, at_end)
    return guard.canaried(flat, dtype, device)
