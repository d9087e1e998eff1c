"""What a user wants done, apart from how."""

from __future__ import annotations

from dataclasses import dataclass

from fp4kernels.errors import WorkloadError
from fp4kernels.recipes import Recipe

MAX_ELEMENTS = 2**31 - 1  # kernels index one operand with 32 bits
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class GemmWorkload:
    """out [M, N] = x [M, K] @ w [N, K] transposed, as torch.nn.functional.linear."""

    m: int
    n: int
    k: int
    activation_dtype: str = "bfloat16"
    output_dtype: str = "bfloat16"
    role: str = "forward"

    def __post_init__(self) -> None:
        shape = f"{self.m}x{self.n}x{self.k}"
        if min(self.m, self.n, self.k) < 1:
            raise WorkloadError(f"M, N and K must be at least 1, but got {shape} (MxNxK)")
        if max(self.m * self.n, self.m * self.k, self.n * self.k) > MAX_ELEMENTS:
            raise WorkloadError(
                f"no operand may hold more than 2^31-1 elements, but got {shape} (MxNxK)"
            )
        for dtype in (self.activation_dtype, self.output_dtype):
            if dtype not in DTYPE_BYTES:
                raise WorkloadError(f"a dtype must be one of {[*DTYPE_BYTES]}, but got {dtype!r}")

    def check(self, recipe: Recipe) -> None:
        """WorkloadError unless N and K are whole numbers of the recipe's blocks."""
        sizes = zip("NK", (self.n, self.k), recipe.multiples, strict=True)
        for name, size, multiple in sizes:
            if size % multiple:
                raise WorkloadError(
                    f"{recipe.name} needs {name} to be a multiple of {multiple}, but got "
                    f"{name}={size}; pad {name} to {-(-size // multiple) * multiple} or choose "
                    "another recipe"
                )

    @property
    def key(self) -> str:
        """A stable name, safe in a file name."""
        return (
            f"gemm-m{self.m}-n{self.n}-k{self.k}-"
            f"{self.activation_dtype}-{self.output_dtype}-{self.role}"
        )

    @property
    def label(self) -> str:
        """The short name for people: M x N x K."""
        return f"{self.m}×{self.n}×{self.k}"

    @property
    def place(self) -> tuple[str, tuple[int, ...]]:
        """Where it stands among workloads that are sorted: products come first."""
        return "", (self.n, self.k, self.m)

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k

    def fewest_bytes(self, recipe: Recipe) -> float:
        """Every operand read once, the output written once."""
        x_bits = 8 * DTYPE_BYTES[self.activation_dtype] * self.m * self.k
        if not recipe.weight_only:
            x_bits = recipe.activations.format.bits(self.m, self.k)
        operands = (x_bits + recipe.format.bits(self.n, self.k)) / 8
        return operands + self.m * self.n * DTYPE_BYTES[self.output_dtype]


@dataclass(frozen=True)
class GroupedWorkload:
    """out [T, N]: each of T tokens by the weights, N x K, of its own of E experts."""

    tokens: int
    experts: int
    n: int
    k: int

    def __post_init__(self) -> None:
        shape = f"{self.tokens} tokens, {self.experts} experts of {self.n}x{self.k} (NxK)"
        if min(self.tokens, self.experts, self.n, self.k) < 1:
            raise WorkloadError(f"tokens, experts, N and K must be at least 1, but got {shape}")
        if max(self.tokens * self.n, self.tokens * self.k, self.n * self.k) > MAX_ELEMENTS:
            raise WorkloadError(
                f"neither x, out nor one expert may hold more than 2^31-1 elements, but got {shape}"
            )


def product(workload: object) -> GemmWorkload:
    """`workload` where it is a GEMM. WorkloadError for any other operation."""
    if isinstance(workload, GemmWorkload):
        return workload
    raise WorkloadError(f"this is done for products only, but got {workload}")
