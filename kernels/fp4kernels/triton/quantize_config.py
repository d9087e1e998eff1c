"""How the work of the quantize kernels is cut up: tiles, warps, and what is compiled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fp4kernels.prologues import Prologue, RmsNorm, SwiGlu
from fp4kernels.recipes import Recipe, Rounding, ScaleRule
from fp4kernels.transforms import HADAMARD_SIZES, signs

WARP = 32  # threads
GROUP = 32  # values that a thread packs into one store of 16 bytes
MOST_HELD = 16384  # values of a row that a program holds, 32 to a thread
MOST_WARPS = 16
STEPS = 4  # tiles of one program that looks for amax: as many fewer atomics
LONG = 64  # values to a thread, from where several tiles would not fit beside each other


@dataclass(frozen=True)
class QuantizeConfig:
    """How the work is cut up: `values` (a power of two) of one program, or more where its warps hold
    more or it needs a whole row, and its warps, or more where a row is long."""

    values: int = 4096
    warps: int = 4


@dataclass(frozen=True)
class Cut:
    """Which values a program has."""

    group: int  # values that a thread holds side by side
    lanes: int  # groups of a tile
    slots: int  # of them in a row of x; 0 where tiles know no rows
    chunks: int  # tiles, one after the other, that a row takes
    total: int  # rows, or groups where tiles know no rows
    warps: int

    @property
    def programs(self) -> int:
        """At least one, as one writes the tensor scale of no rows."""
        rows = self.lanes // self.slots if self.slots else self.lanes
        return max(1, -(-self.total // rows))

    @property
    def steps(self) -> int:
        """Tiles of a program that looks for amax without knowing of rows."""
        return STEPS if self.group < LONG else 1

    @property
    def constants(self) -> dict[str, int]:
        rows = {"slots": self.slots, "chunks": self.chunks} if self.slots else {}
        return {"group": self.group, "rows": self.lanes, **rows}

    @property
    def options(self) -> dict[str, Any]:
        """Of a launch. The reference rounds every product; and a loop is one over a row's chunks."""
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": False}


def cut(
    rows: int, k: int, recipe: Recipe, prologue: Prologue | None, config: QuantizeConfig
) -> Cut:
    """Of `rows` rows of `k` values, after the prologue."""
    by_row = isinstance(prologue, SwiGlu) or needs_rows(recipe, prologue)
    group = group_of(k if by_row else rows * k, recipe)
    least = WARP * config.warps  # a thread has whole groups
    if not needs_rows(recipe, prologue):
        lanes = max(config.values // group, least)
        return Cut(group, lanes, 0, 1, rows * k // group, config.warps)
    in_row = k // group
    slots = min(_power_of_two(in_row), MOST_HELD // group)
    lanes = max(config.values // group, least, slots)
    warps = max(config.warps, min(MOST_WARPS, lanes // WARP))
    return Cut(group, lanes, slots, -(-in_row // slots), rows, warps)


def group_of(k: int, recipe: Recipe) -> int:
    """How many of `k` values one after the other a thread holds: whole blocks of the recipe, and two
    of 16 values where they go up in that."""
    block, turned = recipe.format.block_size, HADAMARD_SIZES.get(recipe.transform, 0)
    return max(turned, block if k % GROUP else GROUP)


def needs_rows(recipe: Recipe, prologue: Prologue | None) -> bool:
    """Whether a code depends on more of its row than its block."""
    return isinstance(prologue, RmsNorm) or recipe.window is not None


def value_constants(recipe: Recipe, prologue: Prologue | None, interpreted: bool) -> dict[str, Any]:
    """Of all kernels: what is made of the values of x."""
    turned = HADAMARD_SIZES.get(recipe.transform, 0)
    minus = sum(1 << place for place, sign in enumerate(signs(turned)) if sign < 0) if turned else 0
    constants: dict[str, Any] = {
        "block": recipe.format.block_size,
        "prologue": _NAMES[type(prologue)],
        "size": turned,
        "minus": minus,
        "interpreted": interpreted,
    }
    if needs_rows(recipe, prologue):
        constants["eps"] = prologue.eps if isinstance(prologue, RmsNorm) else 0.0
    return constants


def code_constants(recipe: Recipe, swizzle: bool, converts: bool) -> dict[str, Any]:
    """Of a kernel that writes codes, on a GPU that `converts` to E2M1 or not."""
    nearest = "hardware" if converts else "nearest"
    rule = recipe.scale_rule if recipe.window is None else ScaleRule.FLOOR
    return {
        "rule": rule.value,
        "rounding": nearest if recipe.rounding is Rounding.NEAREST_EVEN else "stochastic",
        "headroom": recipe.headroom,
        "swizzle": swizzle,
    }


def _power_of_two(count: int) -> int:
    """The least that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


_NAMES = {type(None): "none", RmsNorm: "rms", SwiGlu: "swiglu"}
