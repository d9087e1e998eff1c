"""Is the static model any good on a space that was measured whole on a GPU?

    python scripts/check_static.py --space results/<device>/space.jsonl.gz

Predicts every candidate that passed, from what the compiler makes of it for that GPU (no GPU is
needed, some seconds a kernel), and compares with its measured time: of each workload and recipe the
best of the top 8 within 5% of the optimum, a rank correlation of at least 0.6, and ahead of 8 at
random with separated 95% intervals. Exit 1 where one of these does not hold. --guess does without
compiling, as a search does that the model seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import numpy as np  # noqa: E402
import typer  # noqa: E402

from fp4bench import evidence  # noqa: E402
from fp4bench.boards import Board, board_of  # noqa: E402
from fp4bench.errors import BenchError, Exit  # noqa: E402
from fp4bench.spaces import Space  # noqa: E402
from fp4bench.static import ranker  # noqa: E402
from fp4bench.static.evaluation import judge  # noqa: E402
from fp4bench.static.guess import guesses  # noqa: E402
from fp4bench.trials import PassedTrial  # noqa: E402
from fp4kernels.devices import Device, probe_toolchain  # noqa: E402
from fp4kernels.variants import Candidate  # noqa: E402

Group = dict[Candidate, float]  # candidate → measured ns


def main(
    space: Annotated[Path, typer.Option(help="rows of a whole space, or a folder of them")],
    guess: Annotated[bool, typer.Option("--guess", help="predict without compiling")] = False,
) -> None:
    """Predict, compare."""
    try:
        failed = check(space, guess)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(Exit.ERROR if failed else Exit.OK)


def check(path: Path, guess: bool) -> bool:
    """Whether something does not hold. BenchError for rows that are not of one GPU's space."""
    trials = [row for row in evidence.read(path).trials if isinstance(row, PassedTrial)]
    device, board = described(path, trials)
    failed = False
    for (_, recipe), rows in grouped(trials).items():
        measured = {row.candidate: row.measurement.median_ns for row in rows}
        toolchain = probe_toolchain("cuda")
        whole = Space(rows[0].workload, (recipe,), device, toolchain, "full")
        predicted = (guessed if guess else compiled)(whole, measured, board)
        both = [one for one in measured if one in predicted]
        verdict = judge(
            np.array([predicted[one] for one in both]), np.array([measured[one] for one in both])
        )
        print(f"{rows[0].workload.label} {recipe} on {device.name}, {verdict.candidates} candidates: "
              f"best of the top {verdict.top}, of random ones {verdict.chance}, Spearman "
              f"{verdict.spearman}")  # fmt: skip
        for problem in verdict.problems:
            print(f"  does not hold: {problem}")
        failed |= bool(verdict.problems)
    return failed


def described(path: Path, trials: Sequence[PassedTrial]) -> tuple[Device, Board]:
    devices = {row.device for row in trials}
    if len(devices) != 1:
        names = ", ".join(sorted(device.name for device in devices)) or "none"
        raise BenchError(f"a space is measured on one GPU, but the passed trials of {path} are of {names}")  # fmt: skip
    (device,) = devices
    board = board_of(device)
    if board is None:
        raise BenchError(
            f"the static model is of GPUs that a board describes, but {path} was measured on "
            f"{device.name} ({device.arch}); measure a space on a GPU"
        )
    return device, board


def grouped(trials: Sequence[PassedTrial]) -> dict[tuple[str, str], list[PassedTrial]]:
    found: dict[tuple[str, str], list[PassedTrial]] = {}
    for row in trials:
        found.setdefault((row.workload.key, row.candidate.recipe), []).append(row)
    return found


def compiled(space: Space, measured: Group, board: Board) -> Group:
    """Predicted ns from what the compiler makes of the candidates; those it refuses are left out."""
    request = ranker.Request(
        board.name, board, (space.gemm,), space.recipes, space.effort, space.toolchain, 0
    )
    found: Group = {}
    for rows in ranker.rank(request, ranker.in_turn([ranker.codes(space, measured)])):
        if isinstance(rows, str):
            print(f"  left out: {rows}")
        else:
            found |= {row.candidate: row.predicted_ns for row in rows}
    return found


def guessed(space: Space, measured: Group, board: Board) -> Group:
    (recipe,) = space.recipes
    seconds = guesses(space, board, recipe, measured).seconds
    return {candidate: 1e9 * time for candidate, time in seconds.items()}


if __name__ == "__main__":
    typer.run(main)
