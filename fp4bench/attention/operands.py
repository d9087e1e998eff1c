"""Operands of an attention's measurement: a cache or quantized sequences, and copies of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fp4bench.attention.baselines import ATTENTION_BASELINES
from fp4bench.operands import Kept
from fp4bench.outcomes import Failure
from fp4bench.subjects import Subject
from fp4bench.timing import Operation
from fp4bench.trials import Accuracy, AttentionErrors, Policy, Status
from fp4bench.workloads import Problem
from fp4kernels.attention import gate
from fp4kernels.attention.accuracy import AttentionError, errors
from fp4kernels.attention.cases import odd_cases
from fp4kernels.attention.gate import Case, Exact
from fp4kernels.attention.operands import prepare
from fp4kernels.attention.pages import paged, repeated
from fp4kernels.attention.problem import Segments
from fp4kernels.attention.recipes import AttentionRecipe, attention_recipe
from fp4kernels.attention.registry import ATTENTION_VARIANTS
from fp4kernels.attention.simulate import simulate
from fp4kernels.attention.storing import append_op
from fp4kernels.attention.synthetic import inputs
from fp4kernels.attention.variant import AttentionLauncher, Launched, Paged, Quantized
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.gate import Outcome
from fp4kernels.packing import Packed
from fp4kernels.variants import Candidate

MOST_ROWS = 256  # queries whose exact result tells the format's error


class AttentionOperands(Kept, Subject):
    """What one attention is measured and proven on. All sequences hold the same values, each in
    memory of its own, and have queries of their own."""

    def __init__(self, problem: Problem, here: tuple[Device, Toolchain], seed: int) -> None:
        super().__init__(problem, here[0], seed)
        assert isinstance(problem.workload, AttentionWorkload)
        self.work, self.here = problem.workload, here

    @functools.cached_property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian, of bf16 numbers: q [B, Sq, heads, D] in the workload's type, and float32 k and
        v [keys, kv_heads, D] of every sequence."""
        work = self.work
        drawn = inputs(
            "gaussian", work.batch * work.queries, work.keys, work.heads, work.kv_heads,
            work.head_dim, self.seed,
        )  # fmt: skip
        q, k, v = (x.bfloat16().to(self.device.torch_device) for x in drawn)
        rows = q.view(work.batch, work.queries, work.heads, work.head_dim)
        return rows.to(self._dtype), k.float(), v.float()

    def prepare(self, recipe: str, seed: int) -> None:
        self._cases(recipe, seed)

    def gate(self, launch: AttentionLauncher, candidate: Candidate, seed: int) -> Outcome:
        kernel, recipe = ATTENTION_VARIANTS[candidate.variant], attention_recipe(candidate.recipe)
        rounding = kernel.rounding(candidate.config, recipe, self.device)
        used = 0.0
        for case in self._cases(candidate.recipe, seed):
            tile = kernel.tile(candidate.config)
            outcome = gate.check(launch, rounding, case, tile, expendable=True)
            if outcome.why is not None:
                return outcome
            used = max(used, outcome.used)
        return Outcome(used, None)

    def accuracy(self, launch: AttentionLauncher, candidate: Candidate, used: float) -> Accuracy:
        """The format's error is that of exact attention over what the operands became, but for P,
        which prefill rounds, too; the others are of what the kernel itself makes of them."""
        recipe, (out, lse) = candidate.recipe, self._outputs
        of_format = self._once(("error", recipe), lambda: self._against(*self._exact(recipe)))
        launch(self._own(recipe), out, lse)
        rows, totals = (out, lse) if self.work.phase == Phase.PREFILL else (out[0], lse[0])
        own = self._against(rows[self._compared], totals[:, self._compared])
        return Accuracy(
            kernel_error=used, format_error_db=-of_format.sqnr,
            attention=AttentionErrors(
                sqnr_db=own.sqnr, cosine=own.cosine, rmse=own.rmse, max=own.max, mean=own.mean,
                lse=own.lse,
            ),
        )  # fmt: skip

    def calls(self, launch: AttentionLauncher, candidate: Candidate, policy: Policy) -> Operation:
        """The kernel alone, over every copy of what it reads."""
        copies = self._copies(candidate.recipe, policy)
        calls = [functools.partial(launch, on, *self._outputs) for on in copies]
        return Operation(calls, self.device.kind, policy)

    def end_to_end(
        self, launch: AttentionLauncher, candidate: Candidate, policy: Policy
    ) -> Operation:
        """With quantizing: a decode appends its new keys and values before, prefill all operands."""
        recipe = attention_recipe(candidate.recipe)
        out, lse = self._outputs
        q, k, v = self.tokens
        calls: list[Any] = []
        if self.work.phase == Phase.DECODE:
            new = [
                x[-self.work.queries :].to(self._dtype).repeat(self.work.batch, 1, 1)
                for x in (k, v)
            ]
            for on in self._copies(candidate.recipe, policy):
                assert isinstance(on, Paged)
                append = functools.partial(
                    append_op, *new, *on.keys, *on.values, self._last_slots(on), recipe.text,
                    on.order.value,
                )  # fmt: skip
                calls.append(functools.partial(_in_turn, append, launch, on, out, lse))
        else:
            sources = [(q, k, v)]
            if policy.cache == "cold":
                size = sum(x.nbytes for x in (q, k, v))
                count = self._copy_count(size, policy)
                sources += [(q.clone(), k.clone(), v.clone()) for _ in range(count - 1)]
            for each in sources:
                made = functools.partial(self._quantized, recipe, each)
                calls.append(functools.partial(_after, made, launch, out, lse))
        return Operation(calls, self.device.kind, policy)

    def baseline_calls(self, name: str, policy: Policy) -> Operation:
        baseline = ATTENTION_BASELINES[name]
        count = self._copy_count(baseline.kv_bytes(self.work), policy)
        calls = self._once(
            (name, policy.cache),
            lambda: baseline.prepare(self.tokens, self.work, self.here, count),
        )
        return Operation(calls, self.device.kind, policy)

    def try_baseline(self, name: str) -> Failure | None:
        baseline = ATTENTION_BASELINES[name]
        absent = baseline.absent(self.work, *self.here)
        if absent is not None:
            return Failure(Status.ILLEGAL, absent)
        try:
            (call,) = baseline.prepare(self.tokens, self.work, self.here, 1)
            rows = self._compared
            wrong = baseline.implausible(call()[0, rows], self._original.out)
        except Exception as error:  # torch's, on a device it may not know
            return Failure(Status.RUNTIME_ERROR, f"{type(error).__name__}: {error}"[:500])
        return None if wrong is None else Failure(Status.WRONG, wrong)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.work.dtype)
        return dtype

    @functools.cached_property
    def _compared(self) -> Tensor:
        """Queries of the first sequence."""
        count = min(self.work.queries, MOST_ROWS)
        return torch.linspace(0, self.work.queries - 1, count).long().to(self.device.torch_device)

    @functools.cached_property
    def _original(self) -> Exact:
        """Of those queries, over the operands before any quantizing."""
        q, k, v = self.tokens
        seen = self.work.mask.visible(self.work.queries, self.work.keys, q.device)
        rows = self._compared
        return gate.exact_of(q[0, rows], k, v, seen[rows], self.work.scale)

    def _against(self, out: Tensor, lse: Tensor) -> AttentionError:
        """Those queries' O and LSE, held against the original's; at most 300 dB."""
        found = errors(out, lse, self._original.out, self._original.lse)
        return replace(found, sqnr=min(found.sqnr, 300.0))

    def _exact(self, recipe: str) -> tuple[Tensor, Tensor]:
        """Those queries' O and LSE over what the operands became."""
        own = self._own(recipe)
        if isinstance(own, Paged):
            found = self._own_case(recipe).exact[0]
            return found.out[self._compared], found.lse[:, self._compared]
        how = attention_recipe(recipe)
        out, lse = simulate(own.operands, how, own.mask, own.scale, self.work.head_dim)
        return out[self._compared], lse[:, self._compared]

    def _own(self, recipe: str) -> Launched:
        return self._once(("own", recipe), lambda: self._made(attention_recipe(recipe)))

    def _made(self, recipe: AttentionRecipe) -> Launched:
        q, k, v = self.tokens
        work = self.work
        if work.phase == Phase.PREFILL:
            return self._quantized(recipe, (q, k, v))
        one = paged(
            q[:1], k, v, [work.keys], recipe, work.page_size, window=work.window, scale=work.scale
        )
        return repeated(one, q) if work.batch > 1 else one

    def _quantized(
        self, recipe: AttentionRecipe, tokens: tuple[Tensor, Tensor, Tensor]
    ) -> Quantized:
        q, k, v = tokens
        work, batch = self.work, range(self.work.batch + 1)
        segments = Segments(
            tuple(i * work.queries for i in batch), tuple(i * work.keys for i in batch)
        )
        keys, values = (x.repeat(work.batch, 1, 1) if work.batch > 1 else x for x in (k, v))
        made = prepare(q.flatten(0, 1), keys, values, segments, recipe, work.scale)
        return Quantized(made, work.mask, work.scale)

    def _own_case(self, recipe: str) -> Case:
        def make() -> Case:
            how, on = attention_recipe(recipe), self._own(recipe)
            if isinstance(on, Paged):
                compared = sorted({0, self.work.batch - 1})
                return gate.decode_case("synthetic", how, on, self._dtype, compared)
            return gate.prefill_case("synthetic", how, on, self._dtype, self.work.head_dim)

        return self._once(("case", recipe), make)

    def _cases(self, recipe: str, seed: int) -> list[Case]:
        """These operands, and small ones of every kind."""
        fresh = self._once(
            ("fresh", recipe, seed),
            lambda: odd_cases(self.work, attention_recipe(recipe), seed, self.device.torch_device),
        )
        return [self._own_case(recipe), *fresh]

    @functools.cached_property
    def _outputs(self) -> tuple[Tensor, Tensor]:
        """One for all kernels: where they lie must not tell them apart."""
        work, device = self.work, self.device.torch_device
        rows: tuple[int, ...] = (work.batch, work.queries, work.heads)
        lse: tuple[int, ...] = (work.batch, work.heads, work.queries)
        if work.phase == Phase.PREFILL:
            tokens = work.batch * work.queries
            rows, lse = (tokens, work.heads), (work.heads, tokens)
        return (
            torch.empty(*rows, work.head_dim, dtype=self._dtype, device=device),
            torch.empty(lse, dtype=torch.float32, device=device),
        )

    def _copies(self, recipe: str, policy: Policy) -> list[Launched]:
        own = self._own(recipe)
        how = attention_recipe(recipe)
        size = self.work.fewest_bytes(how)

        def make() -> list[Launched]:
            return [own, *(_copy(own) for _ in range(self._copy_count(size, policy) - 1))]

        return self._once(("copies", recipe, policy.cache), make)

    def _last_slots(self, on: Paged) -> Tensor:
        """Where the newest tokens of every sequence lie, sequence by sequence."""
        places = torch.arange(self.work.keys - self.work.queries, self.work.keys)
        places = places.to(on.page_table.device)
        pages = on.page_table[:, places // self.work.page_size].long()
        return (pages * self.work.page_size + places % self.work.page_size).flatten()


def _copy(on: Launched) -> Launched:
    if isinstance(on, Paged):
        return on.copy()
    held = on.operands
    q, k, v = (Packed(*(t.clone() for t in packed)) for packed in (held.q, held.k, held.v))
    return replace(on, operands=replace(held, q=q, k=k, v=v))


def _in_turn(
    append: Any, launch: AttentionLauncher, on: Launched, out: Tensor, lse: Tensor
) -> None:
    append()
    launch(on, out, lse)


def _after(made: Any, launch: AttentionLauncher, out: Tensor, lse: Tensor) -> None:
    launch(made(), out, lse)
