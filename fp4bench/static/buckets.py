"""What an M between two tuned sizes loses by running as the next of them was tuned, by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fp4bench.boards import Board
from fp4bench.errors import BenchError
from fp4bench.spaces import Space
from fp4bench.static.footprint import guessed
from fp4bench.static.guess import Guesses, guesses
from fp4bench.static.model import predict
from fp4bench.static.product import product_of
from fp4kernels.devices import Toolchain
from fp4kernels.registry import variant
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload


@dataclass
class Buckets:
    """Of one N, K and recipe on a board, tuned at each M of `tuned`; guesses are made once."""

    board: Board
    toolchain: Toolchain
    recipe: str
    workload: GemmWorkload  # of any M
    tuned: Sequence[int]
    _found: dict[int, Guesses] = field(default_factory=dict)

    def loss(self, m: int) -> float:
        """Predicted time of the next bucket's best at `m`, over the best there is for `m`.

        BenchError past the last bucket, or where the model can judge nothing.
        """
        larger = [bucket for bucket in self.tuned if bucket >= m]
        if not larger:
            raise BenchError(f"M={m} is past the last bucket, {max(self.tuned)}")
        held = next(iter(self._guesses(min(larger)).seconds))
        best = min(self._guesses(m).seconds.values())
        return self._seconds(held, m) / best

    def _seconds(self, candidate: Candidate, m: int) -> float:
        """A candidate of the bucket runs every M that it holds, pointless there or not."""
        found = self._guesses(m).seconds.get(candidate)
        if found is not None:
            return found
        kernel, device = variant(candidate.variant), self.board.device
        assert isinstance(kernel, TritonVariant)
        product = product_of(replace(self.workload, m=m), candidate, device)
        needs = guessed(kernel, candidate.config, product, device)
        return predict(self.board, product, needs).seconds

    def _guesses(self, m: int) -> Guesses:
        if m not in self._found:
            work, device = replace(self.workload, m=m), self.board.device
            space = Space(work, (self.recipe,), device, self.toolchain, "quick")
            found = guesses(space, self.board, self.recipe)
            if not found.seconds:
                raise BenchError(f"the model judges no candidate of {self.recipe} for {work.label}")
            self._found[m] = found
        return self._found[m]
