"""From races to a table, and from a table to a kernel in training code."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fp4kernels
from fp4bench.errors import BenchError
from fp4bench.evidence import Evidence
from fp4bench.export import make_table
from fp4bench.summary import frame, summarize
from fp4kernels import LayoutError, Plan, QTensor, Table, TableError, TableWarning
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.layouts import Layout
from samples import candidate, passed_trial, race

REPOSITORY = Path(__file__).parents[1]


def table_of(*rows: Any) -> Table:
    return make_table(Evidence(rows, ()), ["test"])


@pytest.fixture
def here(cpu: Device, toolchain: Toolchain) -> dict[str, Any]:
    if toolchain.compiler is None:
        pytest.skip("needs a C++ compiler")
    return {"device": cpu, "toolchain": toolchain}


def test_a_win_is_chosen_and_a_tie_pins_the_default() -> None:
    lines = summarize([race(1000, 500), race(1000, 995, m=16), race(1000, 1500, m=32)])
    assert [(line.won, line.chosen) for line in lines] == [
        (True, candidate(mr=8)), (False, candidate()), (False, candidate()),
    ]  # fmt: skip
    assert lines[0].speedup_text.startswith("2.0")
    assert lines[1].speedup_text == "tie"
    assert lines[0].against_bf16.middle == pytest.approx(6, rel=0.01)
    data = frame(lines)
    assert data["verdict"].tolist() == ["win", "tie", "loss"]
    assert lines[2].speedup_text == "default"


def test_the_newest_race_counts() -> None:
    old, new = race(1000, 500), race(1000, 999)
    later = new.model_copy(update={"time": new.time.replace(year=2027)})
    assert [line.won for line in summarize([old, later])] == [False]


def test_a_table_is_total_over_m() -> None:
    table = table_of(race(m=1), race(1000, 995, m=8), race(m=512))
    plan = table.lookup(48, 64, "mxfp4")
    assert [m for m, _ in plan.buckets] == [1, 8, 512]
    expected = {1: 8, 3: 4, 8: 4, 24: 8, 512: 8, 700: 8, 10**6: 8}
    assert {m: plan.choose(m).config.values()["mr"] for m in expected} == expected
    with pytest.raises(TableError, match=r"no gemm of N=64, K=64 in mxfp4; tune it with .fp4bench"):
        table.lookup(64, 64, "mxfp4")


def test_one_layout_for_all_m_the_cheapest_in_all() -> None:
    canonical = fp4kernels.variants.Candidate(
        "mxfp4", "torch_expand", Layout.CANONICAL, fp4kernels.torch_gemm.TorchConfig()
    )
    slow = [passed_trial(400, canonical, m=1), passed_trial(9000, canonical, m=8)]
    table = table_of(race(m=1), race(m=8), *slow)
    assert table.lookup(48, 64, "mxfp4").layout is Layout.PANEL16
    fast = [passed_trial(10, canonical, m=1), passed_trial(20, canonical, m=8)]
    assert table_of(race(m=1), race(m=8), *fast).lookup(48, 64, "mxfp4").layout is Layout.CANONICAL


def test_it_survives_the_disk_with_its_provenance(tmp_path: Path) -> None:
    table = table_of(race(m=1), race(m=8))
    table.save(tmp_path / "table.json")
    back = Table.read(tmp_path / "table.json")
    assert (back.device, back.toolchain, dict(back.plans)) == (
        table.device, table.toolchain, dict(table.plans),
    )  # fmt: skip
    evidence = back.provenance["evidence"][0]
    assert evidence["verdict"] == "win"
    assert evidence["held_bytes"] == 48 * 32 + 48 * 2 + 64


def test_no_races_and_two_devices_make_no_table() -> None:
    with pytest.raises(BenchError, match="the results hold none; run tune"):
        table_of()
    other = dataclasses.replace(race().device, cores=64)
    with pytest.raises(BenchError, match="made on one device"):
        table_of(race(), race(device=other))


def test_another_device_is_refused(tmp_path: Path, here: dict[str, Any]) -> None:
    for change in ({"arch": "x86_64-other"}, {"cores": 4096}):
        device = dataclasses.replace(here["device"], **change)
        table_of(race(**{**here, "device": device})).save(tmp_path / "t.json")
        with pytest.raises(TableError, match="a table is tied to its device"):
            Table.load(tmp_path / "t.json")


def test_another_minor_version_warns_and_proves_again(tmp_path: Path, here: dict[str, Any]) -> None:
    old = dataclasses.replace(here["toolchain"], torch="2.1.0")
    table_of(race(**{**here, "toolchain": old})).save(tmp_path / "t.json")
    with pytest.warns(TableWarning, match="go through the gate again"):
        table = Table.load(tmp_path / "t.json")
    assert table.toolchain == here["toolchain"]


def test_another_patch_version_is_silent(tmp_path: Path, here: dict[str, Any]) -> None:
    old = dataclasses.replace(here["toolchain"], torch=here["toolchain"].torch + ".post1")
    table_of(race(**{**here, "toolchain": old})).save(tmp_path / "t.json")
    Table.load(tmp_path / "t.json")


DAMAGE = [
    "", "{", "[]", "null", '{"schema": 2}', '{"schema": 1}', "\x00",
    '{"schema": 1, "device": {}, "toolchain": {}, "provenance": {}, "entries": []}',
    "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_table_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TableError):
        Table.load(tmp_path / "t.json")


def test_a_table_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot read the table"):
        Table.load(tmp_path / "none.json")


@pytest.mark.parametrize("change", [
    {"variant": "unknown"}, {"layout": "canonical"}, {"recipe": "fp3"}, {"m": 0}, {"m": True},
    {"config": {"mr": 4}}, {"config": {**candidate().config.values(), "mr": "4"}}, {"config": None},
])  # fmt: skip
def test_an_entry_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    bucket = {"m": 8, **candidate().to_json()}
    Plan.from_json([bucket])
    with pytest.raises(FormatError):
        Plan.from_json([{**bucket, **change}])


@pytest.mark.parametrize("change", [
    {"config": {**candidate().config.values(), "kc": -32}},
    {"config": {**candidate().config.values(), "panels": 0}},
    {"config": {**candidate().config.values(), "mr": 1 << 20, "rg": 1 << 20}},
    {"m": 1 << 40},
])  # fmt: skip
def test_an_entry_that_would_harm_is_refused(
    tmp_path: Path, here: dict[str, Any], change: dict[str, Any]
) -> None:
    file = tmp_path / "t.json"
    table_of(race(**here)).save(file)
    values = json.loads(file.read_text())
    values["entries"][0]["buckets"][0] |= change
    file.write_text(json.dumps(values))
    with pytest.raises(TableError):
        Table.load(file)


def test_of_two_toolchains_the_newest_counts() -> None:
    old = race(toolchain=dataclasses.replace(race().toolchain, torch="2.0.0"))
    new = race(m=16, time=race().time.replace(year=2027))
    assert [m for m, _ in table_of(old, new).lookup(48, 64, "mxfp4").buckets] == [16]


@pytest.mark.parametrize("part", ["device", "toolchain"])
def test_a_device_of_wrong_types_is_refused(
    tmp_path: Path, here: dict[str, Any], part: str
) -> None:
    file = tmp_path / "t.json"
    table_of(race(**here)).save(file)
    values = json.loads(file.read_text())
    values[part] = dict.fromkeys(values[part], 5)
    file.write_text(json.dumps(values))
    with pytest.raises(TableError, match="has the fields"):
        Table.load(file)


def test_another_model_of_the_same_architecture_warns(tmp_path: Path, here: dict[str, Any]) -> None:
    other = dataclasses.replace(here["device"], name="Another CPU")
    table_of(race(**{**here, "device": other})).save(tmp_path / "t.json")
    with pytest.warns(TableWarning, match="made on Another CPU"):
        Table.load(tmp_path / "t.json")


def test_linear_with_a_table(here: dict[str, Any]) -> None:
    table = table_of(race(m=1, **here), race(m=8, **here))
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    w = fp4kernels.quantize(weight, "mxfp4")
    with pytest.raises(LayoutError, match="call table.arrange"):
        fp4kernels.linear(torch.ones(2, 64), w, table=table)
    held = table.arrange(w)
    for m in (1, 3, 9):
        x = torch.randn(m, 64, generator=torch.Generator().manual_seed(m))
        expected = fp4kernels.quantize(x, "mxfp4").dequantize() @ w.dequantize().T
        torch.testing.assert_close(fp4kernels.linear(x, held, table=table), expected)


def test_linear_with_a_table_is_whole_under_compile(here: dict[str, Any]) -> None:
    table = table_of(race(m=1, **here), race(m=8, **here))
    w = table.arrange(fp4kernels.quantize(torch.ones(48, 64), "mxfp4"))

    def model(x: torch.Tensor, w: QTensor) -> torch.Tensor:
        return fp4kernels.linear(x, w, table=table)

    x = torch.randn(5, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w), model(x, w))


SCRIPT = """
import sys, torch, fp4kernels
assert not any(m in sys.modules for m in ("fp4bench", "optuna", "pandas", "plotly", "pydantic"))
layer = torch.nn.Linear(64, 48, bias=False)
w = fp4kernels.quantize(layer.weight.detach(), "mxfp4")
table = fp4kernels.Table.load(sys.argv[1])
x = torch.randn(3, 64)
y = fp4kernels.linear(x, table.arrange(w), table=table)
exact = fp4kernels.quantize(x, "mxfp4").dequantize().double() @ w.dequantize().double().T
print(float((y - exact).abs().max() / exact.abs().max()))
"""


def test_ten_lines_of_training_code_need_fp4kernels_alone(
    tmp_path: Path, here: dict[str, Any]
) -> None:
    table_of(race(m=8, **here)).save(tmp_path / "table.json")
    # -I -S leave out site-packages' hooks, so that fp4bench cannot be found; torch is added back
    site = Path(torch.__file__).parents[1]
    paths = [str(REPOSITORY / "kernels"), str(site)]
    code = f"import sys; sys.path += {paths!r}\n{SCRIPT}"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(tmp_path / "table.json")],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-6


def test_a_table_is_json_that_others_can_read(tmp_path: Path) -> None:
    table_of(race()).save(tmp_path / "t.json")
    values = json.loads((tmp_path / "t.json").read_text())
    assert [*values] == ["schema", "device", "toolchain", "provenance", "entries"]
    assert values["entries"][0]["buckets"][0]["config"]["mr"] == 8
