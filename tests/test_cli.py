"""The commands as a user runs them: output, files, exit codes, one line for an error."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import fp4bench
from fp4bench import evidence, present
from fp4bench.compare import compare
from fp4bench.evidence import Evidence, Recorder
from fp4bench.export import make_table
from fp4bench.summary import Line
from fp4bench.trials import Status, to_line
from fp4kernels.devices import Device, Toolchain
from running import Ran, Run
from samples import failed_trial, passed_trial, race

TUNE = ["tune", "--shape", "8x64x64", "--recipe", "mxfp4"]


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def test_doctor_says_what_runs(run: Run, cpu: Device) -> None:
    plain = run("doctor", "--device", "cpu")
    assert plain.code == 0
    assert "cpp_w4a4" in plain.out
    values = json.loads(run("doctor", "--device", "cpu", "--json").out)
    assert values["schema"] == 1
    assert values["device"]["arch"] == cpu.arch
    runs = {(a["variant"], a["recipe"]): a for a in values["abilities"]}
    assert runs["torch_expand", "nvfp4"]["badge"] == "storage-only"
    assert runs["decode_bf16", "mxfp4"]["badge"] is None
    assert runs["decode_bf16", "mxfp4"]["reason"]


def test_tune_validate_report_export(run: Run, tmp_path: Path) -> None:
    tuned = run(*TUNE, "--recipe", "nvfp4", "--shape", "3x40x96", "--budget", "25s", "--json")
    assert tuned.code == 0, tuned.err
    values = json.loads(tuned.out)
    assert {(line["workload"], line["recipe"]) for line in values["lines"]} == {
        ("8×64×64", "mxfp4"), ("8×64×64", "nvfp4"), ("3×40×96", "mxfp4"), ("3×40×96", "nvfp4"),
    }  # fmt: skip
    assert values["failures"] == {}
    assert all(line["kernel_error"] <= 1 for line in values["lines"])
    assert {line["verdict"] for line in values["lines"]} <= {"win", "tie", "loss"}
    for path in values["files"].values():
        assert Path(path).is_file()
    results = Path(values["files"]["results"])
    assert results.parent.parent == Path("results")

    again = run(*TUNE, "--budget", "15s")
    assert again.code == 0
    assert "reused from earlier runs" in again.out
    assert " 0 reused" not in again.out
    assert "earlier trials reused" in again.err

    checked = run("validate", values["files"]["table"])
    assert checked.code == 0, checked.out
    assert "4 of 4 kernels passed the gate" in checked.out
    page = run("report", str(results.parent), "-o", "page.html")
    assert (page.code, page.out) == (0, "page.html\n")
    exported = run("export", str(results), "-o", "out/table.json")
    assert exported.code == 0, exported.err
    assert Path("out/table.json").is_file()


def test_tune_a_model_folder_with_its_real_weights(run: Run, minilm: Path) -> None:
    tuned = run("tune", "--model", str(minilm), "--m", "8", "--recipe", "nvfp4",
                "--budget", "20s", "--json")  # fmt: skip
    assert tuned.code == 0, tuned.err
    lines = json.loads(tuned.out)["lines"]
    assert {line["workload"]: line["weights"] for line in lines} == {
        "8×384×384": "encoder.layer.0.attention.output.dense.weight",
        "8×1536×384": "encoder.layer.0.intermediate.dense.weight",
        "8×384×1536": "encoder.layer.0.output.dense.weight",
    }
    assert all(-25 < line["format_error_db"] < -10 for line in lines)


def test_a_compiler_that_fails_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bad = tmp_path / "bin" / "c++"
    bad.parent.mkdir()
    bad.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo c++ 1 && exit\necho no room >&2; exit 3\n"
    )
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bad.parent}:{os.environ['PATH']}")
    result = run(*TUNE, "--budget", "6s")
    assert result.code == 1
    assert "8×64×64 mxfp4: nothing can win, since the default failed" in result.out
    assert "nothing was raced: 8×64×64 mxfp4: nothing can win" in result.err.splitlines()[-1]
    (file,) = files(tmp_path, "*.jsonl")
    reasons = {getattr(row, "reason", None) for row in evidence.read(file).rows}
    assert reasons == {f"{bad} exited with 3: no room"}


def test_a_kernel_that_fails_the_gate_is_exit_4(
    run: Run, tmp_path: Path, cpu: Device, toolchain: Toolchain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The compiler is replaced by one that builds a kernel which writes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "empty.cpp"
    source.write_text('extern "C" { void gemm(void*, void*, long) {} void fp4_pool_start(long) {}'
                      " void fp4_pool_pin(void*, long) {}"
                      " void fp4_parallel_for(long, void*, void*) {} }")  # fmt: skip
    bad = tmp_path / "bin" / "c++"
    bad.parent.mkdir()
    bad.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) exec {toolchain.compiler} "$@";; esac\n'
        'while [ "$1" != "-o" ]; do shift; done\n'
        f'exec {toolchain.compiler} -shared -fPIC {source} -o "$2"\n'
    )
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bad.parent}:{os.environ['PATH']}")
    (tmp_path / "r.jsonl").write_text(to_line(race(device=cpu, toolchain=toolchain)))
    result = run("validate", "r.jsonl")
    assert result.code == 4
    assert "elements outside the gate" in result.out
    assert "0 of 1 kernels passed the gate" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tune", "--recipe", "nvpf4"], 2, "did you mean 'nvfp4'"),
        (["tune", "--shape", "8x64x40"], 2, "mxfp4 needs K to be a multiple of 32, but got K=40"),
        (["tune", "--shape", "0x64x64"], 2, "must be at least 1, but got 0x64x64"),
        (["tune", "--shape", "9999999x9999999x64"], 2, "2^31-1 elements"),
        (["tune", "--shape", "8by8"], 2, "a shape reads MxNxK"),
        (["tune", "--preset", "lama"], 2, "preset"),
        (["tune", "--model", "nowhere"], 1, "config.json cannot be read"),
        (["tune", "--shape", "1x64x64", "--model", "x"], 2, "give one of --shape"),
        (["tune", "--budget", "1s"], 2, "--budget must be at least 5s"),
        (["tune", "--budget", "soon"], 2, "--budget reads as 90s"),
        (["tune", "--effort", "huge"], 2, "must be one of quick, full, but got 'huge'"),
        (["tune", "--m", "1;2", "--preset", "smollm2-135m"], 2, "--m reads as numbers"),
        (["tune", "--launch", "graph"], 2, "--launch graph needs a GPU"),
        (["tune", "--launch", "fast"], 2, "must be one of auto, graph, eager, but got 'fast'"),
        (["tune", "--no-such-flag"], 2, "No such option"),
        (["tune", "--device", "tpu"], 3, "must be 'cpu' or 'cuda'"),
        (["report", "nowhere"], 1, "does not exist"),
        (["export", "nowhere"], 1, "does not exist"),
        (["validate", "nowhere.json"], 1, "cannot read the table"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    run: Run, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments)
    assert result.code == code
    assert message in result.err
    assert "Traceback" not in result.err
    if code != 2 or "No such option" not in message:
        assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"fp4bench {fp4bench.__version__}\n", "")


def test_a_table_of_another_device_is_not_validated(run: Run, tmp_path: Path) -> None:
    make_table(Evidence((race(),), ()), ["test"]).save(tmp_path / "t.json")
    result = run("validate", "t.json")
    assert result.code == 1
    assert "a table is tied to its device" in result.err


def test_no_gpu_is_exit_3(run: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run("doctor", "--device", "cuda")
    assert (result.code, result.out) == (3, "")
    assert "sees no GPU" in result.err


def test_an_unwritable_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    result = run(*TUNE, "--out", "blocked/here")
    assert result.code == 1
    assert "cannot write results to" in result.err.splitlines()[-1]


def test_two_tuners_on_one_folder(run: Run, tmp_path: Path, cpu: Device) -> None:
    with Recorder(tmp_path / "results" / cpu.slug):
        result = run(*TUNE)
    assert result.code == 1
    assert "one tuner at a time" in result.err.splitlines()[-1]


def test_options_from_toml_and_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fp4bench.toml").write_text('[tune]\nbudget = "never"\n')
    assert "but got 'never'" in run(*TUNE).err
    monkeypatch.setenv("FP4BENCH_TUNE_BUDGET", "soon")
    assert "but got 'soon'" in run(*TUNE).err
    assert "but got 'flag'" in run(*TUNE, "--budget", "flag").err


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (b"[tune", "cannot read fp4bench.toml"),
        (b"\xff\xfe", "cannot read fp4bench.toml: 'utf-8' codec"),
        (b"tune = 5", "a command's options are a table [tune], but got tune = 5"),
        (b"[tune]\nbudget = [1]", "[tune] budget is a text or a number, but got [1]"),
        (b"[tune]\nbudget = 2026-01-01", "[tune] budget is a text or a number"),
        (b"[tune]\nshape = [[1]]", "[tune] shape is a text or a list of texts"),
        (b"[tune]\njson = 'yes'", "[tune] json is true or false, but got 'yes'"),
        (b"[tune]\nbugdet = '9s'", "did you mean 'budget'?"),
        (b"[tuen]\nbudget = '9s'", "did you mean 'tune'?"),
        (
            b"[tune]\nshape = '8by8'",
            "a shape reads MxNxK, for example 512x4096x4096, but got '8by8'",
        ),
        (b"[tune]\nbudget = 1", "--budget must be at least 5s"),
        (b"[tune]\ntokens = 8", "--tokens goes with --train"),
        (b"[tune]\ntrain = true\nm = '8'", "--tokens is the M of --model or --preset; leave"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, toml: bytes, message: str
) -> None:
    (tmp_path / "fp4bench.toml").write_bytes(toml)
    result = run("tune")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_configuration_that_is_named_must_be_there(run: Run) -> None:
    result = run("--config", "nowhere.toml", "tune")
    assert result.code == 2
    assert "cannot read nowhere.toml" in result.err


def test_damaged_lines_are_named_and_skipped(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(to_line(race()) + '{"kind":\n')
    result = run("export", "r.jsonl")
    assert result.code == 0
    assert result.err.startswith("r.jsonl:2: skipped: ")


def test_merge_joins_without_duplicates(run: Run, tmp_path: Path) -> None:
    first, second, third = (to_line(race(m=m)) for m in (1, 2, 3))
    (tmp_path / "a.jsonl").write_text(second + first + "{\n")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.jsonl.gz").write_bytes(gzip.compress((first + third).encode()))
    merged = run("merge", "a.jsonl", "b", "-o", "new/all.jsonl.gz")
    assert (merged.code, merged.out) == (0, "new/all.jsonl.gz\n")
    assert "a.jsonl:3: skipped" in merged.err
    assert "3 rows of 2 sources; left out: 1 duplicates, 1 damaged lines" in merged.err
    assert [r.workload.m for r in evidence.read(Path("new/all.jsonl.gz")).races] == [2, 1, 3]
    again = run("merge", "a.jsonl", "-o", "new/all.jsonl.gz")
    assert again.code == 2
    assert "new/all.jsonl.gz exists; pass --force to replace it" in again.err
    assert run("merge", "new/all.jsonl.gz", "-o", "new/all.jsonl.gz", "--force").code == 0
    assert len(evidence.read(Path("new")).rows) == 3
    assert run("merge", "a.jsonl", "-o", "all.json").code == 2
    (tmp_path / "empty.jsonl").write_text("")
    assert "at least one row" in run("merge", "empty.jsonl", "-o", "none.jsonl").err
    assert "cannot write" in run("merge", "a.jsonl", "-o", "a.jsonl/below.jsonl").err


def test_show_lists_what_is_asked_for(run: Run, tmp_path: Path) -> None:
    rows = [passed_trial(2000), passed_trial(1000, m=1), race(m=1),
            failed_trial(Status.WRONG, "element [3] is off by [bold]2[/]")]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(map(to_line, rows)) + "{\n")
    plain = run("show", "r.jsonl")
    assert plain.code == 0
    assert "r.jsonl:5: skipped" in plain.err
    assert "WRONG: element [3] is off by [bold]2[/]" in plain.out
    values = json.loads(run("show", "r.jsonl", "--json", "--sort", "median_us", "--descending",
                            "--kind", "trial", "--limit", "2").out)  # fmt: skip
    assert (values["schema"], values["total"]) == (1, 3)
    assert [row["median_us"] for row in values["rows"]] == [2, 1]
    assert values["rows"][0]["reason"] is None
    wrong = json.loads(run("show", "r.jsonl", "--json", "--status", "wrong").out)["rows"]
    assert [row["status"] for row in wrong] == ["WRONG"]
    of_shape = run("show", "r.jsonl", "--shape", "1x48x64", "--kind", "race", "--limit", "1")
    assert "1×48×64" in of_shape.out
    assert "1 of 3 rows; --limit 0 shows all" in of_shape.err
    for filters, hint in {
        ("--variant", "cpp"): "no row has variant cpp; there are: cpp_w4a4",
        ("--m", "3"): "no row has m 3; there are: 1, 8",
        ("--m", "1", "--status", "WRONG"): "each filter leaves rows, but none has all of",
    }.items():
        result = run("show", "r.jsonl", *filters)
        assert (result.code, result.out) == (0, "")
        assert hint in result.err
    assert "--sort takes one of record" in run("show", "r.jsonl", "--sort", "speed").err
    assert "--kind must be one of trial, race" in run("show", "r.jsonl", "--kind", "x").err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_are_whole_at_any_width(width: int) -> None:
    lines = [Line(race(1e6, 5e5, m=4096, n=14336, k=4096, recipe="nvfp4"))]
    found = evidence.frame(Evidence((race(m=4096, n=14336, k=4096), passed_trial()), ()))
    pairs = compare(Evidence((lines[0].race,), ()), Evidence((lines[0].race,), ()), 0.05).pairs
    for table, words in (
        (present.results_table(lines, width), ["4096×14336×4096", "nvfp4", "2.00×", "vs bf16"]),
        (present.listing_table(found, width, "time"), ["4096×14336×4096", "median_us", "time"]),
        (present.comparison_table(pairs, width), ["4096×14336×4096", "torch_bf16", "1.00×", "tie"]),
    ):
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(table)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        if width >= 80:
            assert all(word in text for word in words)


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(to_line(race()))
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "fp4bench", "show", "r.jsonl"],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.decode().splitlines() == ["error: [Errno 28] No space left on device"]
