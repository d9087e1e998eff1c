"""Where workloads come from, and what happens when they cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fp4bench.errors import BenchError, UsageError
from fp4bench.workloads import (
    Problem,
    WeightSource,
    fitting,
    from_model,
    from_preset,
    from_shapes,
    presets,
    training,
)
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.workloads import GemmWorkload

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_shape_reads_m_n_k() -> None:
    (problem,) = from_shapes(["512x1536x576", "512X1536x576"])
    work = problem.workload
    assert (work.m, work.n, work.k) == (512, 1536, 576)
    assert work.key == "gemm-m512-n1536-k576-bfloat16-bfloat16-forward"
    assert work.flops == 2 * 512 * 1536 * 576


@pytest.mark.parametrize("text", ["512x512", "axbxc", "", "-1x2x3", "1x2x3x4"])
def test_a_text_that_is_no_shape(text: str) -> None:
    with pytest.raises(UsageError, match="a shape reads MxNxK"):
        from_shapes([text])


@pytest.mark.parametrize(("shape", "rule"), [((0, 4, 4), "at least 1"), ((1 << 20, 1 << 20, 32), "2\\^31"),
                                             ((10**30, 1, 1), "2\\^31")])  # fmt: skip
def test_sizes_of_zero_or_beyond_measure(shape: tuple[int, int, int], rule: str) -> None:
    with pytest.raises(WorkloadError, match=rule):
        GemmWorkload(*shape)


def test_equal_shapes_of_a_preset_are_one_problem() -> None:
    problems = from_preset("smollm2-135m", None)
    assert {p.workload.m for p in problems} == {1, 8, 512}
    layers = {p.layers: (p.workload.n, p.workload.k) for p in problems}
    assert layers == {("q", "o"): (576, 576), ("k", "v"): (192, 576),
                      ("gate", "up"): (1536, 576), ("down",): (576, 1536)}  # fmt: skip
    assert len(problems) == 12


@pytest.mark.parametrize("name", presets())
def test_every_preset_fits_every_recipe(name: str) -> None:
    for problem in from_preset(name, [7]):
        assert fitting(problem, ["mxfp4", "nvfp4"]) == []


def test_a_misspelt_preset() -> None:
    with pytest.raises(FormatError, match="did you mean 'smollm2-135m'"):
        from_preset("smolm2-135m", None)


def test_minilm_gives_shapes_and_real_weights(minilm: Path) -> None:
    problems = from_model(minilm, [4])
    assert [p.workload.label for p in problems] == ["4×384×384", "4×1536×384", "4×384×1536"]
    up = problems[1]
    assert up.weights.tensor == "encoder.layer.0.intermediate.dense.weight"
    weight = up.weights.load(1536, 384, seed=0)
    assert weight.shape == (1536, 384)
    assert 0.01 < weight.std() < 0.2


def test_a_model_without_weights_is_synthetic(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    problems = from_model(tmp_path, [1])
    assert {p.weights for p in problems} == {WeightSource()}
    assert {(p.workload.n, p.workload.k) for p in problems} == {
        (64, 64),
        (32, 64),
        (128, 64),
        (64, 128),
    }
    assert torch.equal(WeightSource().load(4, 32, 1), WeightSource().load(4, 32, 1))


def test_embeddings_are_no_linear_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    save_file({"embed_tokens.weight": torch.ones(64, 64), "q.weight": torch.ones(64, 64),
               "norm.weight": torch.ones(64)}, tmp_path / "m.safetensors")  # fmt: skip
    assert from_model(tmp_path, [1])[0].weights.tensor == "q.weight"


def test_a_training_step_is_three_gemms_of_every_layer(tmp_path: Path) -> None:
    weight = torch.randn(96, 64)
    save_file({"q.weight": weight}, tmp_path / "m.safetensors")
    source = WeightSource(str(tmp_path / "m.safetensors"), "q.weight")
    x, dy = torch.randn(5, 64), torch.randn(5, 96)
    forward, dgrad, wgrad = training([Problem(GemmWorkload(5, 96, 64), source, ("q",))])

    def shape(problem: Problem) -> tuple[str, int, int, int]:
        work = problem.workload
        return work.role, work.m, work.n, work.k

    assert [shape(one) for one in (forward, dgrad, wgrad)] == [
        ("forward", 5, 96, 64), ("dgrad", 5, 64, 96), ("wgrad", 96, 64, 5),
    ]  # fmt: skip
    linear = torch.nn.functional.linear
    assert torch.equal(dgrad.weights.load(64, 96, 0), weight.t())
    torch.testing.assert_close(linear(dy, dgrad.weights.load(64, 96, 0)), dy @ weight)
    assert linear(dy.t(), x.t()).shape == (wgrad.workload.m, wgrad.workload.n)
    assert [one.weights.name for one in (forward, dgrad, wgrad)] == [
        "q.weight", "q.weight transposed", "synthetic",
    ]  # fmt: skip
    # a square layer's forward and dgrad differ in their role
    assert len(training([Problem(GemmWorkload(64, 64, 64), source, ("o",))])) == 3


def test_no_config_and_a_config_without_shapes(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"a model folder holds a config.json, but .* cannot be"):
        from_model(tmp_path, [1])
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(BenchError, match="lacks what gives the shapes: intermediate_size"):
        from_model(tmp_path, [1])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BenchError, match="Invalid JSON"):
        from_model(tmp_path, [1])


def test_truncated_safetensors(tmp_path: Path, minilm: Path) -> None:
    shutil.copy(minilm / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        (minilm / "model.safetensors").read_bytes()[: 1 << 20]
    )
    with pytest.raises(BenchError, match="it may be cut short"):
        from_model(tmp_path, [1])


def test_a_k_of_no_whole_blocks_names_the_way_out() -> None:
    (problem,) = from_shapes(["4x64x48"])
    assert fitting(problem, ["nvfp4"]) == []
    assert fitting(problem, ["mxfp4"]) == [
        "mxfp4 needs K to be a multiple of 32, but got K=48; pad K to 64 or choose another recipe"
    ]
