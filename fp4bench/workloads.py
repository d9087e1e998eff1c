"""Where workloads come from: a shape, a preset, or a Hugging Face folder with its weights."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fp4bench.errors import BenchError, UsageError
from fp4kernels.attention.workload import Workload
from fp4kernels.errors import WorkloadError
from fp4kernels.formats import named
from fp4kernels.workloads import GemmWorkload, product

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class WeightSource:
    """A tensor of a safetensors file, or synthetic Gaussian weights where `file` is None."""

    file: str | None = None
    tensor: str = SYNTHETIC
    transposed: bool = False

    @property
    def name(self) -> str:
        """What results call it."""
        return self.tensor + (" transposed" if self.transposed and self.file is not None else "")

    def load(self, n: int, k: int, seed: int) -> Tensor:
        """The weight in float32, N x K."""
        if self.file is None:
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(n, k, generator=generator) / math.sqrt(k)
        with safe_open(self.file, framework="pt") as tensors:
            weight: Tensor = tensors.get_tensor(self.tensor)
        return (weight.t() if self.transposed else weight).float().contiguous()


@dataclass(frozen=True)
class Problem:
    """A workload with the weight that it is measured on and the layers that it stands for."""

    workload: Workload
    weights: WeightSource
    layers: tuple[str, ...]

    @property
    def gemm(self) -> GemmWorkload:
        """The workload, which must be a product."""
        return product(self.workload)


class Model(pydantic.BaseModel):
    """The fields of a config.json that give the shapes of a transformer's linear layers."""

    model_type: str = "unknown"
    hidden_size: int = pydantic.Field(ge=1)
    intermediate_size: int = pydantic.Field(ge=1)
    num_attention_heads: int = pydantic.Field(ge=1)
    num_key_value_heads: int | None = None
    head_dim: int | None = None

    @property
    def head(self) -> int:
        """Values of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: all families but the older encoders and GPT-2's kin."""
        return self.model_type not in ("bert", "roberta", "distilbert", "gpt2", "opt", "gpt_neox")

    def layers(self) -> dict[str, tuple[int, int]]:
        """Linear layers as name → (N, K); embeddings and the head stay in 16 bits."""
        q, kv = self.num_attention_heads * self.head, self.kv_heads * self.head
        hidden, wide = self.hidden_size, self.intermediate_size
        gate = {"gate": (wide, hidden)} if self.gated else {}
        attention = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        return {**attention, **gate, "up": (wide, hidden), "down": (hidden, wide)}


def from_shapes(shapes: Iterable[str]) -> list[Problem]:
    """From texts such as 512x4096x4096 (MxNxK). Raises UsageError or WorkloadError."""
    found = []
    for text in shapes:
        match = re.fullmatch(r"(\d+)[xX×](\d+)[xX×](\d+)", text.strip())
        if match is None:
            raise UsageError(f"a shape reads MxNxK, for example 512x4096x4096, but got {text!r}")
        m, n, k = (int(part) for part in match.groups())
        found.append(Problem(GemmWorkload(m, n, k), WeightSource(), (text,)))
    return unique(found)


def presets() -> dict[str, Path]:
    return {file.stem: file for file in sorted((SPACES / "models").glob("*.toml"))}


def from_preset(name: str, ms: Sequence[int] | None) -> list[Problem]:
    """The layers of a model in search_spaces/models; its own M values unless `ms` is given."""
    values = _preset(name)
    return _problems(Model(**values["model"]), ms or values["m"], {})


def preset_model(name: str) -> Model:
    """Of search_spaces/models. FormatError with the nearest name where there is none."""
    return Model(**_preset(name)["model"])


def _preset(name: str) -> dict[str, Any]:
    return tomllib.loads(named("preset", name, presets()).read_text())


def from_model(folder: Path, ms: Sequence[int]) -> list[Problem]:
    """The layers of a Hugging Face folder, with real weights where it has safetensors.

    Raises BenchError for a missing or damaged file.
    """
    return _problems(
        model_of(folder), ms, dict(reversed(matrices(folder)))
    )  # the first of every shape


def model_of(folder: Path) -> Model:
    """From its config.json. BenchError where that is missing or damaged."""
    config = folder / "config.json"
    try:
        return Model.model_validate_json(config.read_bytes())
    except OSError as error:
        raise BenchError(
            f"a model folder holds a config.json, but {config} cannot be read: {error.strerror}"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{config} lacks what gives the shapes: {field}: {first['msg']}") from None


def training(problems: Iterable[Problem]) -> list[Problem]:
    """The three GEMMs of a step for every linear layer of M tokens, N outputs and K inputs.

    Forward y [M, N] = x wᵀ, dgrad dx [M, K] = dy w, and wgrad dw [N, K] = dyᵀ x, each in the form of
    a GemmWorkload, whose second operand is transposed.
    """
    found = []
    for problem in problems:
        work, weights = problem.gemm, problem.weights
        dgrad = replace(work, n=work.k, k=work.n, role="dgrad")
        wgrad = replace(work, m=work.n, n=work.k, k=work.m, role="wgrad")
        found += [
            problem,
            Problem(dgrad, replace(weights, transposed=not weights.transposed), problem.layers),
            Problem(wgrad, WeightSource(), problem.layers),  # both operands are activations
        ]
    return unique(found)


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """Equal workloads merged: each is tuned once, for all layers that share it."""
    merged: dict[str, Problem] = {}
    for problem in problems:
        key = problem.workload.key
        layers = (*merged[key].layers, *problem.layers) if key in merged else problem.layers
        weights = merged[key].weights if key in merged else problem.weights
        merged[key] = Problem(problem.workload, weights, layers)
    return list(merged.values())


def _problems(
    model: Model, ms: Sequence[int], weights: Mapping[tuple[int, int], WeightSource]
) -> list[Problem]:
    return unique(
        Problem(GemmWorkload(m, n, k), weights.get((n, k), WeightSource()), (name,))
        for name, (n, k) in model.layers().items()
        for m in ms
    )


def matrices(folder: Path) -> list[tuple[tuple[int, int], WeightSource]]:
    """(N, K) of every matrix in the folder's safetensors, by name, embeddings left out.

    Raises BenchError for a damaged file.
    """
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    shape = tuple(tensors.get_slice(name).get_shape())
                    if len(shape) == 2 and min(shape) > 0 and "embed" not in name:
                        found.append(((shape[0], shape[1]), WeightSource(str(file), name)))
        except (SafetensorError, OSError) as error:
            raise BenchError(
                f"cannot read {file}: {error}; it may be cut short, fetch it again"
            ) from error
    return found


def fitting(problem: Problem, recipe_names: Sequence[str]) -> list[str]:
    """Why each recipe that does not fit the workload does not."""
    from fp4kernels.recipes import recipe

    reasons = []
    for name in recipe_names:
        try:
            problem.gemm.check(recipe(name))
        except WorkloadError as error:
            reasons.append(str(error))
    return reasons
