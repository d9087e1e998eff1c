"""The study: every recipe on every source, a recorded row for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fp4bench.accuracy import errors
from fp4bench.accuracy.sources import ACTIVATIONS, Source
from fp4bench.evidence import Recorder
from fp4bench.progress import StudyProgress
from fp4bench.trials import FormatAccuracy, decibels
from fp4kernels import gate, reference
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import FormatError
from fp4kernels.recipes import Recipe, Rounding
from fp4kernels.simulate import approximate


@dataclass(frozen=True)
class Setting:
    """Where and with which seed a study is made; no error depends on the device."""

    device: Device
    toolchain: Toolchain
    seed: int


@dataclass
class Outcome:
    """What was found, and why the rest was left out."""

    rows: list[FormatAccuracy] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(
    sources: Sequence[Source],
    recipes: Sequence[Recipe],
    setting: Setting,
    recorder: Recorder,
    progress: StudyProgress,
) -> Outcome:
    """What does not fit is left out with its reason; Ctrl-C keeps what was computed."""
    outcome = Outcome()
    try:
        for index, source in enumerate(sources):
            progress.source(index, len(sources), source.label)
            sample = Sample(source)
            for recipe in recipes:
                try:
                    row = sample.accuracy(recipe, setting)
                except FormatError as error:
                    outcome.left_out.append(f"{source.label}: {error}")
                else:
                    recorder.append(row)
                    outcome.rows.append(row)
                progress.advance()
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


class Sample:
    """The operands of one source, and their exact product."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.x, self.w = source.make()
        self._rows = gate.compared_rows(len(self.x), 2 * self.w.numel(), self.w.device)
        self._product = reference.gemm(self.x[self._rows], self.w)

    def accuracy(self, recipe: Recipe, setting: Setting) -> FormatAccuracy:
        """FormatError where the recipe does not fit the operands, or they have no finite error."""
        x, w = self._approximations(recipe, setting.seed)
        how, exact, found = recipe, self.w, w
        if self.source.data == ACTIVATIONS:
            how, exact, found = recipe.activations, self.x, x
        product = reference.gemm(x[self._rows], w)
        relative = errors.relative_energy(found, exact)
        output = errors.relative_energy(product, self._product)
        if not (math.isfinite(relative) and math.isfinite(output)):
            raise FormatError(
                f"an error is relative to finite values that are not all zero, but under "
                f"{recipe.name} it is {relative} of the tensor and {output} of the product"
            )
        return FormatAccuracy(
            device=setting.device, toolchain=setting.toolchain, seed=setting.seed,
            data=self.source.data, model=self.source.model, tensor=self.source.tensor,
            m=len(self.x), n=len(self.w), k=self.w.shape[1],
            format=recipe.format.name, rule=recipe.scale_rule, rounding=recipe.rounding,
            transform=recipe.transform, outliers=recipe.outliers.name if recipe.outliers else None,
            weight_only=recipe.weight_only,
            activation=recipe.activation.name if recipe.activation else None,
            bits_per_value=errors.bits_per_value(how, *exact.shape),
            relative_mse=relative, cosine=errors.cosine(found, exact),
            max_error=errors.largest_error(found, exact), format_error_db=decibels(output),
        )  # fmt: skip

    def _approximations(self, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
        """Of x and w. Chance has a seed of its own, apart from those that made the operands."""
        generator = None
        if recipe.rounding is not Rounding.NEAREST_EVEN:
            generator = torch.Generator().manual_seed(seed + 2)
        if not recipe.weight_only:
            x = approximate(self.x, recipe.activations, generator)
        elif self.source.data == ACTIVATIONS:
            raise FormatError(f"{recipe.name} leaves activations as they are")
        else:
            x = self.x.bfloat16()
        return x, approximate(self.w, recipe, generator)
