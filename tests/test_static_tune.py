"""`fp4bench tune --target … --static`: a ranking that says it is a prediction, or one clear line."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp4bench import evidence
from fp4bench.boards import BOARDS
from fp4bench.errors import BenchError
from fp4bench.proof import prover
from fp4bench.static import ranker, rows
from fp4bench.static.rows import PredictedTime
from fp4kernels.devices import Toolchain
from fp4kernels.workloads import GemmWorkload
from running import Run
from test_evidence import documented

TOOLCHAIN = Toolchain("2.13", "3.9.0", None, None, None)
SHAPE = ("--shape", "1x4096x4096", "--recipe", "mxfp4-w4a16")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    prove = functools.partial(prover.prove, module="faulty_predictor")
    monkeypatch.setattr(prover, "prove", prove)


@needs_triton
def test_a_board_that_is_not_here_is_ranked_by_what_compiles_for_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    done = run("tune", "--target", "b200", "--static", *SHAPE, "--most", "1", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["prediction"] is True
    assert values["board"] == "b200"
    assert (values["kernels"], values["compiled"], values["failures"]) == (1, 1, [])
    [ranking] = values["rankings"]
    assert sum(row["default"] for row in ranking) == 1
    times = [row["predicted_ns"] for row in ranking]
    assert times == sorted(times)
    for row in ranking:
        assert row["kind"] == "prediction"
        assert row["device"]["arch"] == "sm_100"
        assert row["limit_ns"] < row["predicted_ns"]
        assert 32 <= row["registers"] <= 255

    path = Path(values["results"])
    assert path.parent == Path("results") / "static" / "b200"
    recorded = rows.read(tmp_path / path)
    assert sorted(row.predicted_ns for row in recorded) == times
    assert evidence.read(tmp_path / path.parent).rows == ()  # nothing that was measured


@needs_triton
@pytest.mark.usefixtures("faulty")
def test_the_table_says_what_it_is(run: Run) -> None:
    done = run("tune", "--target", "H100", "--static", *SHAPE, "--most", "6")
    assert done.code == 0, done.err
    assert "PREDICTION for H100: 1×4096×4096 mxfp4-w4a16" in done.out
    assert "PREDICTION: nothing ran, and no time was measured." in " ".join(done.out.split())
    assert "(default)" in done.out
    assert "kernels are left out: sm_90 mxfp4-w4a16" in done.err
    assert "ptxas fatal: no registers" in done.err


@needs_triton
@pytest.mark.usefixtures("faulty")
def test_an_interrupt_keeps_what_was_done(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = ranker.rank

    def interrupted(*arguments: Any) -> Iterator[list[PredictedTime] | str]:
        yield from [next(rank(*arguments))]
        raise KeyboardInterrupt

    monkeypatch.setattr(ranker, "rank", interrupted)
    done = run("tune", "--target", "h200", "--static", *SHAPE, "--json")
    assert done.code == 130
    values = json.loads(done.out)
    assert values["interrupted"] is True
    assert values["compiled"] == 1 < values["kernels"]
    assert len(rows.read(tmp_path / values["results"])) == len(values["rankings"][0])


@needs_triton
@pytest.mark.usefixtures("faulty")
def test_a_spent_budget_keeps_what_was_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp4bench.cli.tune.seconds", lambda text: 0.0)
    done = run("tune", "--target", "h100", "--static", *SHAPE, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["compiled"] == 1
    assert "kernels were compiled; give more time with --budget" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--static"], "--static needs --target, one of a100, rtx-4090, h100"),
        (["--target", "b200"], "--target names a GPU to predict for, so it needs --static"),
        (["--most", "3"], "--most limits what --static compiles"),
        (["--target", "b2000", "--static"], "a GPU must be a known name"),
        (["--target", "h100", "--static", "--device", "cuda"], "takes no --device"),
        (["--target", "h100", "--static", "--launch", "graph"], "takes no --launch"),
        (["--target", "h100", "--static", "--cache", "warm"], "takes no --cache"),
        (["--target", "h100", "--static", "--seed", "1"], "takes no --seed"),
        (["--target", "mi300x", "--static", *SHAPE[:2], "--recipe", "mxfp4-2d"],
         "none takes mxfp4-2d on MI300X: decode_bf16 runs on an NVIDIA GPU"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run("tune", *arguments)
    assert done.code == 2
    [line] = done.err.splitlines()
    assert words in line
    assert not (tmp_path / "results").exists()


def request(most: int, *workloads: GemmWorkload) -> ranker.Request:
    recipes = ("mxfp4-w4a16", "nvfp4-w4a16")
    return ranker.Request("h100", BOARDS["h100"], workloads, recipes, "quick", TOOLCHAIN, most)


@needs_triton
def test_what_compiles_alike_is_compiled_once_and_defaults_come_first() -> None:
    one, other = GemmWorkload(1, 4096, 4096), GemmWorkload(1, 8192, 4096)
    works = ranker.plan(request(4, one, other))
    assert len(works) < 4 * 4  # N differs in nothing that the compiler sees
    first = works[0].users
    assert first[0][1] == first[0][0].default("mxfp4-w4a16")
    assert {work.job.recipe for work in works[:2]} == {"mxfp4-w4a16", "nvfp4-w4a16"}
    users = [(space.workload, candidate) for work in works for space, candidate in work.users]
    assert len(users) == len(set(users))


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    with pytest.raises(BenchError, match=r"a\.jsonl:1: no prediction"):
        rows.read(file)


def test_every_field_is_in_the_data_dictionary() -> None:
    assert sorted(documented("### Predictions")) == sorted(PredictedTime.model_fields)
