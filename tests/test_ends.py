"""Commands that are ended from outside: kill -9, signals, a full disk. What was measured stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fp4bench import evidence
from fp4bench.evidence import Evidence
from running import Ran, Run

TUNE = ["tune", "--shape", "8x64x64", "--recipe", "mxfp4"]


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def start_tune(folder: Path, *more: str, budget: str = "60s") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fp4bench", *TUNE, "--recipe", "nvfp4", "--budget", budget, *more],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_rows(folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while sum(f.read_bytes().count(b"\n") for f in files(folder, "*.jsonl")) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_a_race(folder: Path, process: subprocess.Popen[bytes]) -> None:
    while not any(b'"kind":"race"' in f.read_bytes() for f in files(folder, "*.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


FULL_DISK = """
mount -t tmpfs -o size=28k tmpfs {folder} || exit 77
{python} -m fp4bench tune --shape 8x64x64 --recipe mxfp4 --budget 30s --out {folder}
echo exit $?
{python} -m fp4bench show {folder}/results/* --json
"""


def test_a_disk_that_fills_up_during_a_tune_keeps_whole_rows(tmp_path: Path) -> None:
    """A real one: a small tmpfs in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare, to mount a small disk")
    script = FULL_DISK.format(folder=tmp_path, python=sys.executable)
    ran = subprocess.run([unshare, "-rm", "sh", "-c", script], capture_output=True, text=True)
    if ran.returncode in (1, 77) and "exit" not in ran.stdout:
        pytest.skip(f"may not mount here: {ran.stderr.strip()[-200:]}")
    assert "exit 1" in ran.stdout
    assert "Traceback" not in ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "make room" in errors[0]
    assert "skipped" not in ran.stderr  # no line is damaged
    shown = json.loads(ran.stdout.partition("exit 1")[2])
    assert len(shown["rows"]) >= 5


def test_kill_9_loses_at_most_the_trial_in_flight(tmp_path: Path) -> None:
    recorded = 0
    for rows in (1, 4, 9):
        process = start_tune(tmp_path)
        wait_for_rows(tmp_path, recorded + rows)
        process.kill()
        process.communicate()
        found = evidence.read(tmp_path / "results" / next((tmp_path / "results").iterdir()).name)
        assert len(found.damage) <= 3
        assert len(found.rows) >= recorded + rows
        recorded = len(found.rows)
        keys = [trial.candidate.key for trial in found.trials]
        assert len(keys) == len(set(keys)), "a resumed run measured again what was recorded"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_measured(tmp_path: Path, number: int, code: int) -> None:
    process = start_tune(tmp_path, "--shape", "16x64x64", budget="24s")
    wait_for_a_race(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert b"interrupted: what was measured is kept" in out
    assert b"Traceback" not in err
    (file,) = files(tmp_path, "*.jsonl")
    assert evidence.read(file).damage == ()
    assert len(files(tmp_path, "table.json")) == 1
    assert len(files(tmp_path, "*.html")) == 1


SLOW_END = """
import os, signal, sys, time
from fp4bench.cli.interrupts import Interrupts
with Interrupts() as interrupts:
    try:
        os.kill(os.getpid(), signal.{first})
        time.sleep(10)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.{second})
        time.sleep(10)
"""


@pytest.mark.parametrize(("first", "second", "code"), [
    ("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGTERM", 143), ("SIGTERM", "SIGINT", 130),
])  # fmt: skip
def test_a_second_signal_ends_at_once(first: str, second: str, code: int) -> None:
    script = SLOW_END.format(first=first, second=second)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            timeout=60, check=False)  # fmt: skip
    assert result.returncode == code
    assert result.stderr.split("\n") == ["", "interrupted again: ended at once", ""]


@pytest.mark.parametrize(("number", "code", "word"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
])  # fmt: skip
def test_a_signal_to_any_command_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: int, code: int, word: str,
) -> None:  # fmt: skip
    def interrupted(path: Path) -> Evidence:
        os.kill(os.getpid(), number)
        time.sleep(10)
        return Evidence((), ())

    monkeypatch.setattr(evidence, "read", interrupted)
    before = signal.getsignal(number)
    result = run("show", "r.jsonl")
    assert result == Ran(code, "", f"{word}\n")
    assert signal.getsignal(number) is before
