"""The contract of a kernel: its searched fields, where it is legal, how it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from fp4kernels.devices import Device, Toolchain
from fp4kernels.elements import E2M1
from fp4kernels.epilogues import Epilogue, FinishedLauncher, beside
from fp4kernels.errors import FormatError
from fp4kernels.formats import MXFP4, NVFP4
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.recipes import Recipe
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.scales import ScaleFormat
from fp4kernels.workloads import GemmWorkload

# launch(x, w, out): x is Packed (canonical), or the plain activations of a weight-only recipe;
# w is Packed in the variant's layout; out [M, N] is bf16 or float32 and is overwritten
Launcher = Callable[[Packed | Tensor, Packed, Tensor], None]

R = TypeVar("R")  # recipe
W = TypeVar("W")  # workload
L = TypeVar("L")  # launcher


class Badge(StrEnum):
    """What this device does with the format's arithmetic."""

    NATIVE = "native"  # the multiply-accumulate takes FP4 and block scales
    EMULATED = "emulated"  # decoded to another type that the device multiplies
    STORAGE = "storage-only"  # dequantized up front; FP4 saves memory, not time


class Arithmetic(StrEnum):
    """The type that the multiplier takes: which peak of the device bounds the kernel."""

    FP4 = "fp4"
    INT8 = "int8"
    FP8 = "fp8"
    BF16 = "bf16"
    FP32 = "fp32"


class Proof(StrEnum):
    """Where the variant's numbers have been checked."""

    INTERPRETER = "interpreter"
    DEVICE = "device"


@dataclass(frozen=True)
class Config:
    """Base of the searched fields of one variant: small integers only."""

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values().items())

    def values(self) -> dict[str, int]:
        # no asdict: it copies deeply, and spaces ask for those of a million configurations
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Variant(ABC, Generic[R, W, L]):
    """One way to do an operation. Stateless."""

    name: ClassVar[str]
    op: ClassVar[str]
    backend: ClassVar[str]
    config_type: ClassVar[type[Config]]
    layout: ClassVar[Layout] = Layout.CANONICAL
    arithmetic: ClassVar[Arithmetic]
    proof: ClassVar[Proof]
    compiles_inside: ClassVar[bool] = False  # the compiler is a library: its crash is the process's

    @abstractmethod
    def recipe(self, text: str) -> R:
        """What a Candidate's recipe stands for. FormatError with the nearest name for none."""

    @abstractmethod
    def recipe_text(self, recipe: R) -> str:
        """The inverse: how a Candidate names it."""

    @abstractmethod
    def takes(self, recipe: R, device: Device, toolchain: Toolchain) -> str | None:
        """Why no configuration of this variant can run the recipe here, or None."""

    @abstractmethod
    def badge(self, recipe: R, device: Device) -> Badge: ...

    def computes_with(self, recipe: R, device: Device) -> Arithmetic:
        """`arithmetic`, unless it depends on what the device can do."""
        return self.arithmetic

    @abstractmethod
    def default(self, workload: W, recipe: R, device: Device) -> Config:
        """The untuned choice: what a user gets without a table."""

    def malformed(self, config: Config, recipe: R) -> str | None:
        """Why no workload on any device could run `config`: what a file may not hold."""
        return None

    @abstractmethod
    def illegal(
        self, config: Config, recipe: R, workload: W, device: Device, toolchain: Toolchain
    ) -> str | None:
        """The hardware's reason why `config` cannot or should not run the workload, or None."""

    def compile(
        self,
        config: Config,
        recipe: R,
        workload: W,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        """Put into the disk cache what build() and its first launch need, with no device at hand.

        With `compiles_inside` it must run in a process of its own, which whoever started it ends
        after `seconds`; else it is safe in several threads at once. Raises BuildError.
        """

    @abstractmethod
    def build(self, config: Config, recipe: R, device: Device, toolchain: Toolchain) -> L:
        """Compile and load. BuildError where the compiler fails."""

    def config(self, values: dict[str, Any]) -> Config:
        """A Config from untrusted values: its fields, all of them integers.

        A field that a kernel got later has a default, which is how it ran before: values that were
        recorded without it are read so.
        """
        expected = {field.name for field in fields(self.config_type)}
        lacking = {f.name for f in fields(self.config_type) if f.default is MISSING} - set(values)
        if lacking or set(values) - expected or any(type(v) is not int for v in values.values()):
            raise FormatError(
                f"a {self.name} config has the integer fields {sorted(expected)}, but got {values}"
            )
        return self.config_type(**values)


class KernelVariant(Variant[Recipe, GemmWorkload, Launcher]):
    """One way to multiply."""

    op: ClassVar[str] = "gemm"
    # why a row's bits depend on M, or on the rows beside it; None where they do not
    varies: ClassVar[str | None] = "was not shown to sum in one order for every M"

    multiples: ClassVar[tuple[int, int]] = (1, 1)  # what N and K are multiples of

    def recipe(self, text: str) -> Recipe:
        return recipe_named(text)

    def recipe_text(self, recipe: Recipe) -> str:
        return recipe.name

    def accumulator_unit(self, config: Config) -> float:
        """u_acc of the gate: that of float32, unless the device sums in less."""
        return 2.0**-24

    def order(self, config: Config) -> Hashable:
        """What decides, with N, K and the recipe, in which order the products of a row are summed.

        Unless the variant varies, equal orders give a row equal bits in any batch.
        """
        return config

    def leads(self, workload: GemmWorkload, recipe: Recipe, device: Device) -> bool:
        """Whether it is the untuned choice although others that can run stand before it."""
        return False

    def unfused(self, epilogue: Epilogue, config: Config) -> str | None:
        """Why the epilogue is a pass of its own over the sums, or None where it is in the kernel."""
        return f"{self.name} has no epilogue in its kernel"

    def build_finished(
        self,
        epilogue: Epilogue,
        config: Config,
        recipe: Recipe,
        device: Device,
        toolchain: Toolchain,
    ) -> FinishedLauncher:
        """As `build`, with an epilogue, fused or not."""
        return beside(self.build(config, recipe, device, toolchain), epilogue)


def needs_fp4(recipe: Recipe) -> str | None:
    """Why a kernel of MXFP4 and NVFP4 cannot run `recipe`, or None; any scale rule will do."""
    return needs_fp4_weight(recipe) or _mixed(recipe)


def _mixed(recipe: Recipe) -> str | None:
    if recipe.activation is None:
        return None
    return f"knows one format for both operands, but the recipe has {recipe.activation.name} activations"


def needs_fp4_weight(recipe: Recipe) -> str | None:
    """As needs_fp4, whatever the activations are."""
    if recipe.format not in (MXFP4, NVFP4):
        return f"reads blocks of mxfp4 and nvfp4, but the recipe has {recipe.format.name}"
    if not recipe.plain:
        return "multiplies codes under scales, but the recipe transforms or clamps operands"
    return None


def needs_fp4_blocks(recipe: Recipe) -> str | None:
    """Why a kernel of FP4 in blocks of 16 to 128, under any scales that it knows, cannot."""
    fmt = recipe.format
    known = (ScaleFormat.E8M0, ScaleFormat.E4M3, ScaleFormat.FP32)
    blocks = [(1, size) for size in (16, 32, 64, 128)]
    if fmt.element != E2M1 or fmt.block_shape not in blocks or fmt.scale not in known:
        return (
            "reads FP4 in blocks of 16, 32, 64 or 128 along K under scales of E8M0, E4M3 or FP32, "
            f"but the recipe has {fmt.name}"
        )
    if fmt.scale is ScaleFormat.FP32 and fmt.block_size < 64:
        return f"multiplies a block's sum by its FP32 scale, which pays from 64 values on, but the recipe has {fmt.name}"
    if not recipe.plain:
        return "multiplies codes under scales, but the recipe transforms or clamps operands"
    return _mixed(recipe)


@dataclass(frozen=True)
class Candidate:
    """One thing to measure: recipe x variant x layout x config."""

    recipe: str
    variant: str
    layout: Layout
    config: Config

    @property
    def key(self) -> str:
        return f"{self.recipe}/{self.variant}/{self.layout.value}/{self.config.label}"

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "variant": self.variant,
            "layout": self.layout.value,
            "config": self.config.values(),
        }
