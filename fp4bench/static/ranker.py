"""Rank the candidates of a board that need not be here: compile, predict, sort."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fp4bench.boards import Board
from fp4bench.errors import BenchError, UsageError
from fp4bench.proof import prover
from fp4bench.proof.rows import BuiltProof, LoopCode
from fp4bench.spaces import Space
from fp4bench.static.footprint import THREADS, compiled
from fp4bench.static.guess import guesses
from fp4bench.static.model import predict
from fp4bench.static.product import Product, product_of
from fp4bench.static.rows import PredictedTime, fields_of
from fp4kernels.devices import Toolchain
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import VARIANTS, variant
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload, product


@dataclass(frozen=True)
class Request:
    """What to rank. At most `most` kernels are compiled for each workload and recipe: those of its
    default, then those that are fastest by a guess."""

    name: str  # of the board
    board: Board
    workloads: tuple[GemmWorkload, ...]
    recipes: tuple[str, ...]
    effort: str
    toolchain: Toolchain
    most: int


@dataclass
class Work:
    """One compilation, and all that its code stands for."""

    job: prover.Job
    users: list[tuple[Space, Candidate]] = field(default_factory=list)


def plan(request: Request) -> list[Work]:
    """What is to be compiled, the most promising of every workload and recipe before the next.

    Candidates, workloads and recipes that compile alike share one compilation. UsageError for a
    recipe that no Triton kernel takes on the board.
    """
    board = request.board
    queues = [
        _promising(
            Space(workload, (recipe,), board.device, request.toolchain, request.effort), board
        )[: request.most]
        for workload in request.workloads
        for recipe in request.recipes
    ]
    return in_turn(queues)


def in_turn(queues: Sequence[Sequence[Work]]) -> list[Work]:
    """The first of every queue, then the second; what compiles to the same code only once."""
    found: dict[str, Work] = {}
    for turn in itertools.zip_longest(*queues):
        for work in filter(None, turn):
            found.setdefault(_identity(work.job), Work(work.job)).users.extend(work.users)
    return list(found.values())


def _promising(space: Space, board: Board) -> list[Work]:
    """Of one workload and recipe: the default's code, then by the best guess."""
    (recipe,) = space.recipes
    default = space.default(recipe)
    if not isinstance(variant(default.variant), TritonVariant):
        kernels = [kernel for kernel in VARIANTS.values() if isinstance(kernel, TritonVariant)]
        reasons = {
            k.name: k.takes(recipe_named(recipe), space.device, space.toolchain) for k in kernels
        }
        raise UsageError(
            f"a static prediction needs a Triton kernel, but none takes {recipe} on {board.name}: "
            + "; ".join(f"{name} {why}" for name, why in reasons.items())
        )
    return codes(space, [default, *guesses(space, board, recipe).varied()])


def codes(space: Space, candidates: Iterable[Candidate]) -> list[Work]:
    """What is to be compiled for Triton `candidates` of one workload, those of one code together."""
    found: dict[tuple[str, str], Work] = {}
    for candidate in dict.fromkeys(candidates):
        kernel = variant(candidate.variant)
        assert isinstance(kernel, TritonVariant)
        alike = kernel.compiles_as(candidate.config)
        key = (kernel.name, alike.label)
        if key not in found:
            job = prover.Job(
                kernel.name, candidate.recipe, space.device.arch, space.gemm, alike.values(),
                default=False,
            )  # fmt: skip
            found[key] = Work(job)
        found[key].users.append((space, candidate))
    return list(found.values())


def _identity(job: prover.Job) -> str:
    """Equal for jobs of the same machine code."""
    kernel = VARIANTS[job.variant]
    assert isinstance(kernel, TritonVariant)
    sources = kernel.sources(
        kernel.config(job.config), recipe_named(job.recipe), product(job.workload)
    )
    return repr([job.arch, *(source.specialization for source in sources)])


def rank(request: Request, works: Sequence[Work]) -> Iterator[list[PredictedTime] | str]:
    """For each of `works`, in their order, its rows or why there are none."""
    proofs = prover.prove([work.job for work in works], request.toolchain)
    for work, proof in zip(works, proofs, strict=True):
        if isinstance(proof, BuiltProof):
            try:
                yield [_row(request, proof, *user) for user in work.users]
            except BenchError as error:
                yield f"{proof.label}: {error}"
        else:
            yield f"{proof.label}: {proof.reason}"


def _row(request: Request, proof: BuiltProof, space: Space, candidate: Candidate) -> PredictedTime:
    product = product_of(space.gemm, candidate, space.device)
    needs = compiled(proof.gemm, product, step_of(proof.gemm.loop, product))
    prediction = predict(request.board, product, needs)
    return PredictedTime.model_validate({
        "board": request.name, "device": space.device, "toolchain": proof.toolchain,
        "kernels": proof.kernels, "workload": space.workload,
        "candidate_values": candidate.to_json(),
        "default": candidate == space.default(candidate.recipe),
        "spills": sum(code.spills for code in proof.code), **fields_of(prediction, needs),
    })  # fmt: skip


def step_of(loop: LoopCode | None, product: Product) -> dict[str, float] | None:
    """Instructions of one K step by class, where the code shows its loop; unrolled ones hold several."""
    if loop is None:
        return None
    tile = product.tiling
    steps = loop.weights * THREADS * tile.warps / (tile.block_n * tile.block_k)
    return {name: count / steps for name, count in loop.instructions.items()}


def ranked(rows: Sequence[PredictedTime]) -> list[list[PredictedTime]]:
    """Of every workload and recipe its rows, the fastest first."""
    groups: dict[tuple[str, str], list[PredictedTime]] = {}
    for row in rows:
        groups.setdefault((row.workload.key, row.candidate.recipe), []).append(row)
    return [sorted(group, key=lambda row: row.predicted_ns) for group in groups.values()]
