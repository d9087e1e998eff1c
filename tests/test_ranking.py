"""Who is fastest of a problem, and what is tried first on the next one."""

from __future__ import annotations

from fp4bench.judging import Final
from fp4bench.ranking import FINALISTS, HINTS, Ranking, hints
from fp4bench.trials import Status
from fp4bench.workloads import Problem, WeightSource
from fp4kernels.workloads import GemmWorkload
from samples import candidate, failed_trial, passed_trial, race


def test_finalists_are_ranked_by_their_time_over_the_defaults() -> None:
    best = Ranking()
    for mr, ns in ((1, 900.0), (2, 700.0), (4, 1000.0), (8, 800.0), (16, 750.0)):
        best.add(passed_trial(ns, candidate(mr=mr)))
    best.add(failed_trial(Status.WRONG, "no", candidate(mr=1, rg=1)))
    best.add(passed_trial(500.0, candidate("nvfp4")))
    found = best.finalists("mxfp4")
    assert [one.config.values()["mr"] for one in found] == [2, 16, 8, 1][:FINALISTS]
    assert best.ratio("mxfp4") == 0.7
    assert candidate(mr=4) in best
    assert candidate(mr=1, rg=1) not in best


def test_a_row_of_an_earlier_schema_ranks_nothing() -> None:
    best = Ranking()
    best.add(passed_trial(1.0).model_copy(update={"beside_default": None}))
    assert best.finalists("mxfp4") == []
    assert best.ratio("mxfp4") is None


def test_hints_come_from_the_most_alike_problem_first() -> None:
    near, far = GemmWorkload(8, 64, 64), GemmWorkload(512, 64, 64)
    known = [
        (far, [candidate(mr=16), candidate(mr=8), candidate("nvfp4", mr=16)]),
        (near, [candidate(mr=2), candidate(mr=8)]),
    ]
    found = hints(GemmWorkload(8, 128, 64), known, ("mxfp4", "nvfp4"))
    mine = [candidate(mr=2), candidate(mr=8), candidate(mr=16)]
    assert found == [*mine[:HINTS], candidate("nvfp4", mr=16)]


def test_the_order_of_finalists_is_of_all_heats_or_the_searchs_own() -> None:
    one, other, last = (candidate(mr=mr) for mr in (1, 2, 4))
    problem = Problem(GemmWorkload(8, 64, 64), WeightSource(), ())
    final = Final(problem, candidate(mr=8), [one, other, last])
    assert final.ranked() == [one, other, last]
    final.heats = {one: [0.0, 0.0], other: [-0.1, 0.2], last: [0.05, -0.2]}
    assert final.ranked() == [last, one, other]


def test_only_a_clearly_faster_finalist_displaces_what_an_earlier_run_chose() -> None:
    one, incumbent = candidate(mr=1), candidate(mr=2)
    problem = Problem(GemmWorkload(8, 64, 64), WeightSource(), ())
    final = Final(problem, candidate(mr=8), [one, incumbent], incumbent)
    assert final.ranked() == [incumbent, one]
    final.heats = {one: [0.0, 0.0], incumbent: [0.03, 0.04]}
    assert final.ranked() == [incumbent, one]
    final.heats = {one: [0.0, 0.0], incumbent: [0.04, 0.05]}
    assert final.ranked() == [one, incumbent]


def test_who_never_met_the_default_leaves_and_the_others_keep_their_order() -> None:
    unraced, one, other = (candidate(mr=mr) for mr in (1, 2, 4))
    problem = Problem(GemmWorkload(8, 64, 64), WeightSource(), ())
    final = Final(problem, candidate(mr=8), [unraced, one, other])
    final.narrow()
    assert final.finalists == [unraced, one, other]  # none was raced, none is out
    final.heats = {unraced: [0.0, 0.0], one: [-0.2, 0.5], other: [-0.1, 0.2]}
    final.races = {one: race(), other: race()}
    final.narrow()
    assert final.ranked() == [other, one]
    assert final.heats[one] == [0.0, 0.0]
