"""The device suite: a step that fails or hangs is one step, and a second call goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from device import steps  # noqa: E402
from device.part import measured  # noqa: E402
from device.place import Place, collect  # noqa: E402
from device.steps import Step, ordered, run  # noqa: E402

from fp4kernels.devices import Device, Toolchain  # noqa: E402


def quiet(line: str) -> None:
    assert line


def step(name: str, code: str, out: Path, share: float = 0.5, goes_on: bool = False) -> Step:
    rows = out / "steps" / f"{name}.rows.json"
    done = f"import pathlib, time, sys; rows = pathlib.Path({str(rows)!r}); {code}"
    return Step(name, (sys.executable, "-c", done), share, goes_on)


def answer(rows: str) -> str:
    return f"rows.write_text({rows!r})"


def held(out: Path, name: str) -> dict[str, object]:
    values: dict[str, object] = json.loads((out / "steps" / f"{name}.json").read_text())
    return values


def test_each_step_is_protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One dies, one hangs with a child of its own, one says nothing, one has a bad row: the last is
    still run, and all of them are on record."""
    monkeypatch.setattr(steps, "GRACE", 0.5)
    child = tmp_path / "child"
    hang = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    every = [
        step("dies", "raise SystemExit('the device is lost')", tmp_path),
        step("hangs", hang, tmp_path, share=0.02),
        step("silent", "pass", tmp_path),
        step("wrong", answer('[{"case": "a"}, {"case": "b", "error": "off"}]'), tmp_path),
        step("good", answer('[{"case": "a", "ns": 3}]'), tmp_path),
    ]
    start = time.monotonic()
    found = run(every, tmp_path, 50.0, quiet)
    assert time.monotonic() - start < 20
    assert found == {
        "dies": "FAILED", "hangs": "TIMEOUT", "silent": "FAILED", "wrong": "FAILED", "good": "OK",
    }  # fmt: skip
    assert "the device is lost" in str(held(tmp_path, "dies")["error"])
    assert held(tmp_path, "dies")["code"] == 1
    assert held(tmp_path, "good")["rows"] == [{"case": "a", "ns": 3}]
    assert len(str(held(tmp_path, "wrong")["rows"])) > 20
    with pytest.raises(ProcessLookupError):  # nothing of it is left on the device
        for _ in range(50):
            os.kill(int(child.read_text()), 0)
            time.sleep(0.1)


def test_unmeasured_work_comes_first(tmp_path: Path) -> None:
    every = [
        step("failed", "raise SystemExit(3)", tmp_path),
        step("more", answer("[]"), tmp_path, goes_on=True),
        step("done", answer("[]"), tmp_path),
    ]
    assert run(every, tmp_path, 30.0, quiet) == {"failed": "FAILED", "more": "OK", "done": "OK"}
    new = step("new", answer("[]"), tmp_path)
    names = [one.name for one in ordered([*every, new], tmp_path / "steps")]
    assert names == ["new", "failed", "more"]


def test_no_step_starts_without_time(tmp_path: Path) -> None:
    slow = step("slow", "time.sleep(0.4); " + answer("[]"), tmp_path)
    said: list[str] = []
    assert run([slow, step("late", answer("[]"), tmp_path)], tmp_path, 0.3, said.append) != {}
    assert said[-1] == "late: no time left"


def test_a_case_that_fails_is_a_row() -> None:
    def off() -> dict[str, object]:
        raise ValueError("codes differ")

    rows = collect([("one", lambda: {"ns": 1}), ("two", off), ("three", lambda: {"ns": 2})])
    assert [row.get("ns") for row in rows] == [1, None, 2]
    assert rows[1] == {"case": "two", "error": "ValueError: codes differ"}


def part(name: str, out: Path) -> list[dict[str, object]]:
    done = subprocess.run(
        [*steps.python(ROOT / "scripts" / "device" / "part.py", name), "--out", str(out),
         "--device", "cpu", "0.2"],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, object]] = json.loads((out / "steps" / f"{name}.rows.json").read_text())
    return rows


@pytest.mark.parametrize("name", ["fused", "attention", "epilogues", "invariance", "dense"])
def test_parts_run_on_a_cpu(tmp_path: Path, name: str, cpu: Device, toolchain: Toolchain) -> None:
    """Small sizes, whose times mean nothing: all rows are there, and every check in them holds."""
    rows = measured(name, Place(cpu, toolchain, 0.1, small=True), tmp_path, None, [])
    assert [row for row in rows if "error" in row] == []
    assert len(rows) >= 6


def test_a_part_runs_alone(tmp_path: Path) -> None:
    rows = part("experts", tmp_path)
    assert [row for row in rows if "error" in row] == []
    assert len(rows) == 3
    assert all(row["device"] for row in rows)


def test_an_unknown_step_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "device_suite.py"), "--out", str(tmp_path),
         "--device", "cpu", "--only", "atention"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--only names steps of probes, race, attention" in done.stderr
