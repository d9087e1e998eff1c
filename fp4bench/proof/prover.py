"""Compile for GPUs that are not here, in processes that may die, each within a time limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pydantic

from fp4bench.child import ChildDiedError, ChildLateError, serve
from fp4bench.children import Children
from fp4bench.errors import UsageError
from fp4bench.proof.rows import BuiltProof, FailedProof, KernelCode, LoopCode, Proof
from fp4bench.proof.targets import ARCHES, target
from fp4bench.spaces import values_of
from fp4kernels.attention.recipes import ATTENTION_RECIPES, attention_recipe
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.workload import AttentionWorkload, Phase, Workload
from fp4kernels.devices import Toolchain, usable_cpus
from fp4kernels.errors import BuildError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.recipes import RECIPES, Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import VARIANTS, any_variant
from fp4kernels.source import digest
from fp4kernels.triton.attention_variant import TritonAttention
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Config
from fp4kernels.workloads import GemmWorkload, product

if TYPE_CHECKING:
    from fp4kernels.triton.offline import Compiled, KernelSource  # imports triton

DEFAULT = "default"
SECONDS = 120.0  # for one configuration; a second or two is usual
MOST_PROCESSES = 16
REASON = 400  # characters of a compiler's line that are kept
DECODING, PREFILL = GemmWorkload(1, 4096, 4096), GemmWorkload(4096, 4096, 4096)
ATTENTION = (
    AttentionWorkload(Phase.DECODE, 8, 1, 32768, 32, 8, 128, page_size=64),
    AttentionWorkload(Phase.PREFILL, 1, 4096, 4096, 32, 8, 128),
)
SHAPES = (DECODING, *(GemmWorkload(m, 4096, 4096) for m in (32, 64, 128)), PREFILL)


@dataclass(frozen=True)
class Job:
    """What to compile."""

    variant: str
    recipe: str
    arch: str
    workload: Workload
    config: dict[str, int]
    default: bool


_JOB = pydantic.TypeAdapter(Job)
_ANSWER: pydantic.TypeAdapter[tuple[KernelCode, ...] | str] = pydantic.TypeAdapter(
    tuple[KernelCode, ...] | str
)


def triton_variants(recipe: Recipe, toolchain: Toolchain) -> list[TritonVariant]:
    """Those that take the recipe on any known GPU."""
    return [
        kernel
        for kernel in VARIANTS.values()
        if isinstance(kernel, TritonVariant)
        and any(kernel.takes(recipe, board, toolchain) is None for board in ARCHES.values())
    ]


def recipes_of(names: Sequence[str] | None, toolchain: Toolchain) -> list[Recipe]:
    """The recipes called `names`, or all of the formats that some GPU multiplies itself.

    UsageError for one without a Triton kernel.
    """
    if toolchain.triton is None:
        raise UsageError("compiling needs Triton, which is not installed; pip install triton")
    if not names:
        native = [recipe for recipe in RECIPES.values() if recipe.format in (MXFP4, NVFP4)]
        return [recipe for recipe in native if triton_variants(recipe, toolchain)]
    chosen = [recipe_named(name) for name in dict.fromkeys(names)]
    for recipe in chosen:
        if not triton_variants(recipe, toolchain):
            raise UsageError(f"a recipe must have a Triton kernel, but {recipe.name} has none")
    return chosen


def jobs_of(
    arches: Sequence[str], recipes: Sequence[Recipe], effort: str, toolchain: Toolchain
) -> list[Job]:
    """The defaults of a decoding and a prefill shape, or every legal configuration of a space.

    Configurations that compile alike are built once. Where a variant is refused there is no
    legality to choose by, so its defaults are all.
    """
    found: dict[tuple[str, str, str, Config], Job] = {}
    for arch, recipe in itertools.product(arches, recipes):
        kernels = triton_variants(recipe, toolchain)
        for kernel in (kernel for kernel in kernels if kernel.compiles_for(arch)):
            for workload in (DECODING, PREFILL) if effort == DEFAULT else SHAPES:
                configs = _configs(kernel, recipe, arch, workload, effort, toolchain)
                for number, config in enumerate(configs):
                    job = Job(
                        kernel.name, recipe.name, arch, workload, config.values(), number == 0
                    )
                    key = (arch, recipe.name, kernel.name, config)
                    if job.default:
                        found.pop(key, None)
                    found.setdefault(key, job)
    return list(found.values())


def attention_jobs(
    arches: Sequence[str], names: Sequence[str] | None, toolchain: Toolchain
) -> list[Job]:
    """The untuned attention of a decode and a prefill with heads of 128.

    UsageError without Triton, FormatError for a recipe that is none.
    """
    if toolchain.triton is None:
        raise UsageError("compiling needs Triton, which is not installed; pip install triton")
    recipes = [attention_recipe(name) for name in dict.fromkeys(names or ATTENTION_RECIPES)]
    kernels = [k for k in ATTENTION_VARIANTS.values() if isinstance(k, TritonAttention)]
    every = itertools.product(arches, recipes, kernels, ATTENTION)
    return [
        Job(
            kernel.name, recipe.text, arch, work,
            kernel.default(work, recipe, target(arch)).values(), default=True,
        )
        for arch, recipe, kernel, work in every
        if work.phase == kernel.phase and (recipe.four_bit or work.phase is Phase.DECODE)
    ]  # fmt: skip


def _configs(
    kernel: TritonVariant,
    recipe: Recipe,
    arch: str,
    workload: GemmWorkload,
    effort: str,
    toolchain: Toolchain,
) -> Iterator[Config]:
    """The default, then the others."""
    board = target(arch)
    yield kernel.default(workload, recipe, board)
    if effort == DEFAULT or kernel.takes(recipe, board, toolchain) is not None:
        return
    values = values_of(kernel, effort)
    for combination in itertools.product(*values.values()):
        config = kernel.config(dict(zip(values, combination, strict=True)))
        if kernel.illegal(config, recipe, workload, board, toolchain) is None:
            yield kernel.compiles_as(config)


def prove(
    jobs: Sequence[Job], toolchain: Toolchain, module: str = "fp4bench.proof.prover"
) -> Iterator[Proof]:
    """A row for each job, in their order. Leaving early kills what still compiles."""
    toolchain = replace(toolchain, driver=None)  # none has a part in it
    children = Children(module)
    threads = ThreadPoolExecutor(min(len(usable_cpus()), MOST_PROCESSES))
    try:
        results = [threads.submit(_outcome, job, children) for job in jobs]
        for job, result in zip(jobs, results, strict=True):
            yield _row(job, result.result(), toolchain)
    finally:
        children.kill()
        threads.shutdown(cancel_futures=True)
        children.stop()


def _outcome(job: Job, children: Children) -> tuple[KernelCode, ...] | dict[str, Any]:
    """Code, or the fields of a FailedProof."""
    try:
        answer = _ANSWER.validate_json(children.ask(_JOB.dump_json(job), SECONDS))
    except ChildDiedError as death:
        return {"status": "COMPILE_ERROR", "reason": f"the compiler: {death}", "killed": True}
    except ChildLateError as late:
        return {"status": "TIMEOUT", "reason": f"the compiler: {late}", "killed": True}
    return {"status": "COMPILE_ERROR", "reason": answer} if isinstance(answer, str) else answer


def _row(job: Job, outcome: tuple[KernelCode, ...] | dict[str, Any], toolchain: Toolchain) -> Proof:
    kernel, board = any_variant(job.variant), target(job.arch)
    recipe = kernel.recipe(job.recipe)
    common: dict[str, Any] = {
        **{name: getattr(job, name) for name in _JOB_FIELDS},
        "toolchain": toolchain,
        "kernels": digest(),
        "refused": kernel.takes(recipe, board, toolchain),
    }
    if isinstance(outcome, dict):
        return FailedProof(**common, **outcome)
    limit = board.shared_memory
    if isinstance(kernel, TritonVariant):
        work = product(job.workload)
        limit = kernel.shared_limit(kernel.config(job.config), recipe, work, board)
    return BuiltProof(**common, code=outcome, shared_limit=limit)


_JOB_FIELDS = ("variant", "recipe", "arch", "workload", "config", "default")


def _sources(job: Job) -> list[KernelSource]:
    kernel = any_variant(job.variant)
    config, recipe, work = kernel.config(job.config), kernel.recipe(job.recipe), job.workload
    if isinstance(kernel, TritonAttention):
        assert isinstance(work, AttentionWorkload)
        return kernel.sources(config, recipe, work, target(job.arch))
    assert isinstance(kernel, TritonVariant)
    return kernel.sources(config, recipe, product(work))


def last_line(text: str) -> str:
    """What a compiler said last: its last line with an error, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or lines)[-1][:REASON]


def run(job: Job) -> tuple[KernelCode, ...] | str:
    """Compile in this process: the code, or why there is none."""
    from fp4kernels.triton.instructions import mix
    from fp4kernels.triton.offline import compile_for  # imports triton

    try:
        built = [compile_for(source, job.arch) for source in _sources(job)]
    except BuildError as error:
        return last_line(str(error))
    return tuple(
        KernelCode(
            name=code.name, registers=code.registers, spills=code.spills,
            stack_bytes=code.stack_bytes, shared_bytes=code.shared_bytes,
            mma_kinds=code.mma_kinds, instructions=dict(sorted(mix(code.instructions).items())),
            loop=_loop(code, job.config),
        )
        for code in built
    )  # fmt: skip


def _loop(code: Compiled, config: dict[str, int]) -> LoopCode | None:
    """The main loop, where there is SASS and one kind of matrix instruction in known shape."""
    from fp4kernels.triton.loops import main_loop

    loop = main_loop(code.sass) if code.ptx and "block_k" in config else None
    if loop is None or len(code.mma_kinds) != 1 or code.mma_kinds[0].startswith("tcgen05"):
        return None
    weights = loop.weights_per_lane(code.mma_kinds[0], config["block_m"])
    return LoopCode(
        instructions=dict(sorted(loop.instructions.items())), counted=loop.counted, weights=weights
    )


def main() -> None:
    """Serve until the parent is gone."""
    serve(lambda hello: lambda question: _ANSWER.dump_json(run(_JOB.validate_json(question))))


if __name__ == "__main__":
    main()
