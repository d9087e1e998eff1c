"""What attention is asked for, apart from how: a problem that is tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fp4kernels.attention.cache import PAGE_SIZES
from fp4kernels.attention.problem import Mask, MaskKind
from fp4kernels.attention.recipes import AttentionRecipe, check_four_bit, check_head_dim
from fp4kernels.errors import WorkloadError
from fp4kernels.formats import named
from fp4kernels.workloads import DTYPE_BYTES, MAX_ELEMENTS, GemmWorkload


class Phase(StrEnum):
    PREFILL = "prefill"  # whole sequences, quantized together
    DECODE = "decode"  # a few new queries over a paged cache


@dataclass(frozen=True)
class AttentionWorkload:
    """`batch` sequences of `queries` queries over `keys` keys each, of one length.

    The last query sees the last key. A `window` of 0 is none. Decoding reads pages of `page_size`
    tokens; prefill has none, which is 0. `dtype` is that of queries and outputs.
    """

    phase: Phase
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    page_size: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        named("phase of attention", self.phase, {phase.value: phase for phase in Phase})
        check_head_dim(self.head_dim)
        counts = (self.batch, self.queries, self.keys, self.heads, self.kv_heads)
        if min(counts) < 1:
            raise WorkloadError(
                "batch, queries, keys and heads must be at least 1, but got "
                f"batch {self.batch}, {self.queries} queries, {self.keys} keys, {self.heads} heads "
                f"over {self.kv_heads}"
            )
        if self.heads % self.kv_heads:
            raise WorkloadError(
                f"query heads are a multiple of kv heads, but got {self.heads} and {self.kv_heads}"
            )
        if self.queries > self.keys:
            raise WorkloadError(
                "a causal mask needs at least as many keys as queries, but got "
                f"{self.queries} queries and {self.keys} keys"
            )
        if self.window < 0:
            raise WorkloadError(f"a window is at least 1, or 0 for none, but got {self.window}")
        paged = self.phase == Phase.DECODE
        if self.page_size not in (PAGE_SIZES if paged else (0,)):
            rule = f"one of {PAGE_SIZES}" if paged else "0 (nothing is paged)"
            raise WorkloadError(
                f"the page size of {self.phase} must be {rule}, but got {self.page_size}"
            )
        if self.keys * self.kv_heads * self.head_dim > MAX_ELEMENTS:
            raise WorkloadError(
                "the keys of a sequence are at most 2^31-1 values, but got "
                f"{self.keys} keys of {self.kv_heads} heads of {self.head_dim}"
            )
        if self.dtype not in DTYPE_BYTES:
            raise WorkloadError(f"a dtype must be one of {[*DTYPE_BYTES]}, but got {self.dtype!r}")

    def check(self, recipe: AttentionRecipe) -> None:
        """FormatError unless such attention is defined in the recipe."""
        if self.phase == Phase.PREFILL:
            check_four_bit(recipe)

    @property
    def mask(self) -> Mask:
        return Mask(MaskKind.SLIDING, self.window) if self.window else Mask(MaskKind.CAUSAL)

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @property
    def key(self) -> str:
        """A stable name, safe in a file name."""
        rest = f"-w{self.window}" * bool(self.window) + f"-p{self.page_size}" * bool(self.page_size)
        return (
            f"attention-{self.phase}-b{self.batch}-q{self.queries}-c{self.keys}-"
            f"h{self.heads}-{self.kv_heads}-d{self.head_dim}{rest}-{self.dtype}"
        )

    @property
    def label(self) -> str:
        """The short name for people."""
        some = f"{self.queries}/" if self.phase == Phase.DECODE and self.queries > 1 else ""
        window = f" window {self.window}" if self.window else ""
        return (
            f"{self.phase} {self.batch}×{some}{self.keys} "
            f"{self.heads}/{self.kv_heads}×{self.head_dim}{window}"
        )

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Where it stands among workloads that are sorted."""
        shape = (self.heads, self.kv_heads, self.head_dim, self.window, self.page_size)
        return f"attention {self.phase}", (*shape, self.batch, self.keys, self.queries)

    @property
    def visible(self) -> int:
        """Pairs of a query and a key that it sees, of one head of one sequence."""
        first, last = self.keys - self.queries + 1, self.keys
        window = self.window or last
        short = max(0, min(last, window) - first + 1)  # queries that see all up to their own
        return short * (2 * first + short - 1) // 2 + (self.queries - short) * window

    @property
    def flops(self) -> int:
        """Of both products, over what the mask leaves."""
        return 4 * self.batch * self.heads * self.head_dim * self.visible

    def kv_bytes(self, bits: float) -> float:
        """Of K and V that are read once, where a value of the two has so many bits, together."""
        seen = min(self.keys, self.window + self.queries - 1) if self.window else self.keys
        return self.batch * seen * self.kv_heads * self.head_dim * bits / 8

    def fewest_bytes(self, recipe: AttentionRecipe) -> float:
        """Every operand read once, the output written once."""
        k, v = recipe.k.format.bits_per_value, recipe.v.format.bits_per_value
        wide = 8 * DTYPE_BYTES[self.dtype]
        q = (
            wide
            if self.phase == Phase.DECODE or recipe.q is None
            else recipe.q.format.bits_per_value
        )
        rows = self.batch * self.queries * self.heads * self.head_dim
        return self.kv_bytes(k + v) + rows * (q + wide) / 8

    def unlike(self, other: AttentionWorkload) -> float:
        """How far another is from it, in log sizes; infinite where kernels are others."""
        if (self.phase, self.head_dim) != (other.phase, other.head_dim):
            return math.inf
        pairs = [(getattr(self, x), getattr(other, x)) for x in ("batch", "queries", "keys")]
        pairs += [(self.heads, other.heads), (self.group, other.group)]
        return sum(abs(math.log(a / b)) for a, b in pairs)


Workload = GemmWorkload | AttentionWorkload
