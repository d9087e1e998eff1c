"""The contract of an attention kernel, and what it is launched on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fp4kernels.attention.operands import Operands
from fp4kernels.attention.problem import Mask
from fp4kernels.attention.recipes import AttentionRecipe, attention_recipe
from fp4kernels.attention.storing import Held, Order
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.devices import Device, Toolchain
from fp4kernels.variants import Config, Variant


@dataclass(frozen=True, eq=False)
class Paged:
    """A decode's operands: q [S, Sq, heads, D] as the model gives it, and a cache's tensors."""

    q: Tensor
    keys: Held
    values: Held
    page_table: Tensor
    lengths: Tensor
    longest: int
    order: Order
    window: int
    scale: float

    @property
    def page_size(self) -> int:
        return self.keys.codes.shape[1 if self.order is Order.NHD else 2]

    @property
    def kv_heads(self) -> int:
        return self.keys.codes.shape[2 if self.order is Order.NHD else 1]

    def copy(self) -> Paged:
        """The same in memory of its own."""
        keys, values = (Held(*(t.clone() for t in held)) for held in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A prefill's operands."""

    operands: Operands
    mask: Mask
    scale: float


Launched = Paged | Quantized
# launch(operands, out, lse): decoding fills out [S, Sq, heads, D] and lse [S, heads, Sq], prefill
# out [T, heads, D] and lse [heads, T]; lse is float32
AttentionLauncher = Callable[[Launched, Tensor, Tensor], None]


@dataclass(frozen=True)
class Rounding:
    """What a kernel's arithmetic may lose beside float32 sums; the gate allows no more."""

    query: float = 0.0  # of each element, over the largest of its row
    product: float = 0.0  # of each product of a query and a key
    weight: float = 0.0  # of each probability, over itself
    least: float = 0.0  # of each probability, over the largest of its row


class AttentionVariant(Variant[AttentionRecipe, AttentionWorkload, AttentionLauncher]):
    """One way to do one phase of attention."""

    op: ClassVar[str] = "attention"
    phase: ClassVar[Phase]

    def recipe(self, text: str) -> AttentionRecipe:
        return attention_recipe(text)

    def recipe_text(self, recipe: AttentionRecipe) -> str:
        return recipe.text

    @abstractmethod
    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        """Declared for the gate of decoding; prefill is held against its simulation."""

    def tile(self, config: Config) -> int | None:
        """Keys under which prefill rounds P at once, as the simulation must; None for its own."""
        return None

    def illegal(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
        toolchain: Toolchain,
    ) -> str | None:
        if workload.phase != self.phase:
            return f"does {self.phase}, but the workload is {workload.phase}"
        return self.malformed(config, recipe) or self.unsuited(config, recipe, workload, device)

    def unsuited(
        self, config: Config, recipe: AttentionRecipe, workload: AttentionWorkload, device: Device
    ) -> str | None:
        """The rest of `illegal`, for a config that is one and a workload of its phase."""
        return None
