"""The measuring process: a Bench behind a pipe. A crash or a hang becomes a Failure."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import pydantic
import torch

from fp4bench.bench import Bench, Entrants
from fp4bench.child import Child, ChildDiedError, ChildLateError, limit_memory, serve
from fp4bench.errors import OperandsError
from fp4bench.outcomes import Failure, RaceResult, Success
from fp4bench.trials import REFERENCE, Accuracy, Limits, Policy, Status
from fp4bench.workloads import Problem
from fp4kernels.cpu.launch import pin_pool
from fp4kernels.devices import Device, Toolchain, usable_cpus
from fp4kernels.errors import BuildError
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate

PREPARE_SECONDS = 600.0  # drawing, quantizing and multiplying operands of the largest problems
LIMITS_SECONDS = 120.0
# torch's OpenMP threads spin for milliseconds after their work, on the cores that the next
# candidate of a race is timed on; this is some 0.2 ms, enough for calls in a row
_SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True)
class Setup:
    """What a worker learns once."""

    device: Device
    toolchain: Toolchain
    policy: Policy
    seed: int
    # found here: in the worker, OpenMP binds the main thread when it is loaded
    cpus: tuple[int, ...] = field(default_factory=usable_cpus)


@dataclass(frozen=True)
class Request:
    """A method of Bench and its arguments; `candidates` as Candidate.to_json."""

    method: Literal["prepare", "evaluate", "prove", "try_baseline", "race", "limits"]
    problem: Problem | None = None
    candidates: tuple[dict[str, Any], ...] = ()
    best: float | None = None
    seconds: float = 0.0
    proof: int = 0
    policies: tuple[Policy, ...] = ()
    baselines: tuple[str, ...] = ()
    energy: bool = False


@dataclass(frozen=True)
class RaceOptions:
    """How a race is run; without policies, under the worker's own."""

    seconds: float  # of sampling, at most
    limit: float  # seconds for all of it
    policies: tuple[Policy, ...] = ()
    baselines: tuple[str, ...] = (REFERENCE,)
    energy: bool = False  # read it, too, where the device counts it; a second for each


Raced = tuple[RaceResult, ...] | Failure
Reply = Success | Failure | tuple[RaceResult, ...] | Accuracy | Limits
_SETUP, _REQUEST = pydantic.TypeAdapter(Setup), pydantic.TypeAdapter(Request)
_REPLY: pydantic.TypeAdapter[Reply | None] = pydantic.TypeAdapter(Reply | None)


class Worker:
    """Calls a Bench in another process. One candidate's death is another process's start.

    `module` is what the process runs: this one, or one that adds kernel variants to it.
    """

    def __init__(self, setup: Setup, module: str = "fp4bench.worker") -> None:
        self._setup, self._module = setup, module
        self._child: Child | None = None
        self._spare: Child | None = None
        self._prepared: set[tuple[Problem, str]] = set()

    def evaluate(
        self, problem: Problem, candidate: Candidate, best: float | None, limit: float
    ) -> Success | Failure:
        """Build, prove, time beside the default; `best` is the lowest ratio to it so far.

        Operands are prepared before `limit` counts.
        """
        values = (candidate.to_json(),)
        reply = self._measure(Request("evaluate", problem, values, best), limit)
        assert isinstance(reply, Success | Failure)
        return reply

    def prove(
        self, problem: Problem, candidate: Candidate, proof: int, limit: float
    ) -> Accuracy | Failure:
        """The gate alone, on inputs of its own for every number `proof`."""
        values = (candidate.to_json(),)
        reply = self._measure(Request("prove", problem, values, proof=proof), limit)
        assert isinstance(reply, Accuracy | Failure)
        return reply

    def race(self, problem: Problem, candidates: Sequence[Candidate], how: RaceOptions) -> Raced:
        """Time the candidates, proven before, interleaved with baselines under every policy."""
        values = tuple(candidate.to_json() for candidate in candidates)
        request = Request(
            "race", problem, values, seconds=how.seconds, baselines=how.baselines,
            policies=how.policies or (self._setup.policy,), energy=how.energy,
        )  # fmt: skip
        reply = self._measure(request, how.limit)
        assert isinstance(reply, tuple | Failure)
        return reply

    def try_baseline(self, problem: Problem, name: str) -> Failure | None:
        """Why the baseline must not race here, or None."""
        reply = self._ask(Request("try_baseline", problem, baselines=(name,)), PREPARE_SECONDS)
        assert reply is None or isinstance(reply, Failure)
        return reply

    def limits(self) -> Limits | Failure:
        """What the device can do at most."""
        reply = self._ask(Request("limits"), LIMITS_SECONDS)
        assert isinstance(reply, Limits | Failure)
        return reply

    def start(self) -> None:
        """Start the process, without waiting until it has imported torch."""
        if self._child is None:
            self._child, self._spare = self._spare or self._new(), None
            self._prepared.clear()

    def keep_spare(self) -> None:
        """Have the next process ready. To be called while nothing is timed; it sleeps else."""
        self.start()
        if self._spare is None:
            self._spare = self._new()
        self._spare.resume()

    def stop(self) -> None:
        """Kill the processes; the next call starts another."""
        for child in (self._child, self._spare):
            if child is not None:
                child.stop()
        self._child = self._spare = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _measure(self, request: Request, limit: float) -> Reply | None:
        assert request.problem is not None
        self.start()
        if any(problem != request.problem for problem, _ in self._prepared):
            self._prepared.clear()  # a Bench keeps one problem's operands
        for recipe in {values["recipe"] for values in request.candidates}:
            if (request.problem, recipe) not in self._prepared:
                self._prepare(request.problem, request.candidates)
                self._prepared.add((request.problem, recipe))
        return self._ask(request, limit)

    def _prepare(self, problem: Problem, candidates: tuple[dict[str, Any], ...]) -> None:
        reply = self._ask(Request("prepare", problem, candidates), PREPARE_SECONDS)
        if isinstance(reply, Failure):
            raise OperandsError(
                f"the operands of {problem.workload.label} could not be made: {reply.reason}"
            )

    def _ask(self, request: Request, limit: float) -> Reply | None:
        self.start()
        assert self._child is not None
        if self._spare is not None:
            self._spare.pause()
        try:
            reply = _REPLY.validate_json(self._child.ask(_REQUEST.dump_json(request), limit))
        except ChildDiedError as death:
            self._child = None
            return Failure(Status.RUNTIME_ERROR, str(death), killed=True)
        except ChildLateError as late:
            self._child = None
            return Failure(Status.TIMEOUT, str(late), killed=True)
        if isinstance(reply, Failure) and reply.status is Status.RUNTIME_ERROR:
            self._child.stop()  # what raised may have left the device in any state
            self._child = None
        return reply

    def _new(self) -> Child:
        return Child(self._module, _SETUP.dump_json(self._setup), _environment(self._setup))


def _environment(setup: Setup) -> dict[str, str]:
    """Of a measuring process: torch's threads stay on the cores that the kernels' threads use."""
    if setup.device.kind != "cpu":
        return {}
    places = ",".join(f"{{{cpu}}}" for cpu in setup.cpus)
    wanted = {**_SHORT_SPIN, "OMP_PROC_BIND": "true", "OMP_PLACES": places}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def main() -> None:
    """Serve until the parent is gone."""
    serve(_bench)


def _bench(hello: bytes) -> Any:
    setup = _SETUP.validate_json(hello)
    if setup.device.kind == "cpu":
        limit_memory()
        torch.set_num_threads(setup.device.cores)
        with contextlib.suppress(BuildError):  # without a compiler there are no such kernels
            pin_pool(setup.device, setup.toolchain, setup.cpus)
    bench = Bench(setup.device, setup.toolchain, setup.policy, setup.seed)
    return lambda question: _REPLY.dump_json(_answer(bench, _REQUEST.validate_json(question)))


def _answer(bench: Bench, request: Request) -> Reply | None:
    if request.method == "limits":
        return bench.limits()
    problem = request.problem
    assert problem is not None
    candidates = [candidate_from_json(values) for values in request.candidates]
    match request.method:
        case "prepare":
            try:
                bench.prepare(problem, candidates)
            except Exception as error:  # a damaged weights file, or too little memory
                return Failure(Status.RUNTIME_ERROR, f"{type(error).__name__}: {error}"[:500])
            return None
        case "evaluate":
            best = math.inf if request.best is None else request.best  # JSON has no infinity
            return bench.evaluate(problem, candidates[0], best)
        case "prove":
            return bench.prove(problem, candidates[0], request.proof)
        case "try_baseline":
            return bench.try_baseline(problem, request.baselines[0])
        case "race":
            entrants = Entrants(tuple(candidates), request.baselines, request.policies)
            return bench.race(problem, entrants, request.seconds, request.energy)


if __name__ == "__main__":
    main()
