"""What recipes are tried on: synthetic distributions, tune's own operands, and a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Generator, Tensor

from fp4bench.errors import BenchError
from fp4bench.operands import Operands
from fp4bench.workloads import SYNTHETIC, Problem, WeightSource, matrices
from fp4kernels.devices import probe_device

T = TypeVar("T")

WEIGHTS, ACTIVATIONS = "weights", "activations"

Pair = tuple[Tensor, Tensor]  # the operands of a GEMM: x [M, K] and w [N, K]


@dataclass(frozen=True)
class Source:
    """The operands of a GEMM, made when they are asked for. The tensor whose own error is stated is
    x where `data` is `activations`, else w."""

    data: str
    make: Callable[[], Pair]
    model: str | None = None
    tensor: str | None = None

    @property
    def label(self) -> str:
        return f"{self.data} {self.tensor}" if self.tensor else self.data


@dataclass(frozen=True)
class Size:
    """Of synthetic operands, M x N x K. M also counts the activations that real weights meet, and
    `every` says whether all matrices of a model take part, or the first of each shape."""

    m: int
    n: int
    k: int
    every: bool


FULL, QUICK = Size(256, 1024, 1024, every=True), Size(64, 256, 1024, every=False)

Draw = Callable[[tuple[int, int], Generator], Tensor]


def _gaussian(shape: tuple[int, int], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _laplace(shape: tuple[int, int], generator: Generator) -> Tensor:
    """The difference of two exponentials."""
    one, other = (torch.empty(shape).exponential_(generator=generator) for _ in range(2))
    return one - other


def _student(freedom: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    squares = torch.randn(freedom, *shape, generator=generator).square()
    return _gaussian(shape, generator) / squares.mean(0).sqrt()


def _outliers(shape: tuple[int, int], generator: Generator) -> Tensor:
    """N(0, 1) + Bernoulli(0.005) N(0, 10^4)."""
    hit = torch.rand(shape, generator=generator) < 0.005
    return _gaussian(shape, generator) + hit * 100 * _gaussian(shape, generator)


def _scale_phase(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Rows of deviation 2^u, u uniform in [0, 1): averages over where amax lies between powers of
    two, which the error of E8M0 scales depends on."""
    return _gaussian(shape, generator) * torch.exp2(torch.rand(shape[0], 1, generator=generator))


DISTRIBUTIONS: Mapping[str, Draw] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "student-t-5": partial(_student, 5),
    "student-t-3": partial(_student, 3),
    "outliers": _outliers,
    "scale-phase": _scale_phase,
}


def synthetic(name: str, size: Size, seed: int) -> Source:
    """A weight of one of DISTRIBUTIONS, met by Gaussian activations."""

    def make() -> Pair:
        generator = torch.Generator().manual_seed(seed)
        return _activations(size.m, size.k, seed), DISTRIBUTIONS[name]((size.n, size.k), generator)

    return Source(name, make)


def of_problem(problem: Problem, seed: int) -> Source:
    """The very operands that `tune` measures the problem on."""

    def make() -> Pair:
        operands = Operands(problem, probe_device("cpu"), seed)
        return operands.activations, operands.weight

    return Source(SYNTHETIC, make)


def weights_of(folder: Path, size: Size, seed: int) -> list[Source]:
    """The matrices of a Hugging Face folder, embeddings left out, met by Gaussian activations.

    Raises BenchError where the folder has none in safetensors.
    """
    found = matrices(folder)
    if not found:
        raise BenchError(
            f"weights are read from matrices in *.safetensors, but {folder} has none; "
            "save the model with save_pretrained(folder), or name another --model"
        )

    def make(source: WeightSource, n: int, k: int) -> Pair:
        return _activations(size.m, k, seed), source.load(n, k, seed)

    chosen = found if size.every else first_of_each(found)
    return [
        Source(WEIGHTS, partial(make, source, *shape), model_name(folder), source.tensor)
        for shape, source in chosen
    ]


def first_of_each(
    found: Iterable[tuple[tuple[int, int], T]],
) -> list[tuple[tuple[int, int], T]]:
    """Of things with a shape, the first that has it."""
    first: dict[tuple[int, int], T] = {}
    for shape, thing in found:
        first.setdefault(shape, thing)
    return list(first.items())


def model_name(folder: Path) -> str:
    return folder.absolute().name


def _activations(rows: int, columns: int, seed: int) -> Tensor:
    return _gaussian((rows, columns), torch.Generator().manual_seed(seed + 1))
