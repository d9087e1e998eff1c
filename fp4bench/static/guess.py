"""The model before anything is compiled: which candidates to try first, and which not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fp4bench.boards import Board, board_of
from fp4bench.errors import BenchError
from fp4bench.spaces import Space
from fp4bench.static.footprint import guessed
from fp4bench.static.model import predict
from fp4bench.static.product import Tiling, product_of
from fp4kernels.registry import any_variant
from fp4kernels.triton.variant import TritonVariant
from fp4kernels.variants import Candidate

SEEDS = 4  # of a recipe: the first to be tried after its default
SAMENESS = 0.05  # of its guess, for each that came before with the same blocks
HOPELESS = 4.0  # times the best guess; more than the model has been off by where marks are public


@dataclass(frozen=True)
class Guesses:
    """Candidates that the model can judge with their guessed seconds, the fastest first."""

    seconds: Mapping[Candidate, float]

    def fastest(self, count: int = SEEDS) -> list[Candidate]:
        return self.varied()[:count]

    def varied(self) -> list[Candidate]:
        """All, the fastest first; but a guess hardly tells apart what differs in warps and stages
        alone, so every further one of a tile counts as slower."""
        alike: Counter[tuple[int, ...]] = Counter()
        scores: dict[Candidate, float] = {}
        for candidate, seconds in self.seconds.items():
            tile = Tiling.of(candidate.config.values())
            blocks = tile.block_m, tile.block_n, tile.block_k
            scores[candidate] = seconds * (1 + SAMENESS * alike[blocks])
            alike[blocks] += 1
        return sorted(scores, key=scores.__getitem__)

    def hopeless(self, factor: float = HOPELESS) -> set[Candidate]:
        """Those guessed to take more than `factor` times as long as the best."""
        best = min(self.seconds.values(), default=0.0)
        return {one for one, seconds in self.seconds.items() if seconds > factor * best}


def guesses(
    space: Space, board: Board, recipe: str, candidates: Iterable[Candidate] | None = None
) -> Guesses:
    """Of the Triton candidates of `recipe`, all or those given; what cannot be judged is left out."""
    found: dict[Candidate, float] = {}
    for candidate in space.candidates[recipe] if candidates is None else candidates:
        kernel = any_variant(candidate.variant)
        if not isinstance(kernel, TritonVariant):
            continue
        try:
            product = product_of(space.gemm, candidate, space.device)
            needs = guessed(kernel, candidate.config, product, space.device)
            found[candidate] = predict(board, product, needs).seconds
        except BenchError:  # no tiles, or too large by this guess: measuring decides
            continue
    return Guesses(dict(sorted(found.items(), key=lambda one: one[1])))


def advice(space: Space) -> tuple[list[Candidate], set[Candidate]]:
    """For a search on `space.device`: what to try first, and what not at all; never a default.

    Nothing of either for a CPU, or for a GPU that no board describes.
    """
    board = board_of(space.device)
    first: list[Candidate] = []
    never: set[Candidate] = set()
    for recipe in space.recipes if board is not None else ():
        assert board is not None
        found = guesses(space, board, recipe)
        first += found.fastest()
        never |= found.hopeless() - {space.default(recipe)}
    return first, never
