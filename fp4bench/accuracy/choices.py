"""The cross product of formats, scale rules, roundings, transforms and treatments of outliers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fp4bench.errors import UsageError
from fp4kernels.formats import BlockFormat
from fp4kernels.recipes import Outliers, Recipe, Rounding, Transform, rules_for
from fp4kernels.scales import ScaleFormat
from fp4kernels.scaling import ScaleRule

OUTLIERS = (
    None,
    *(Outliers(quantile, compensate=False) for quantile in (0.999, 0.99)),
    *(Outliers(quantile, compensate=True) for quantile in (0.999, 0.99, 0.97)),
)


@dataclass(frozen=True)
class Choices:
    """What to cross; `rules` gives those of a format."""

    formats: Sequence[BlockFormat]
    rules: Callable[[BlockFormat], Sequence[ScaleRule]]
    roundings: Sequence[Rounding]
    transforms: Sequence[Transform]
    outliers: Sequence[Outliers | None]

    def recipes(self) -> tuple[list[Recipe], list[str]]:
        """Those that can be, in order, and why others cannot. UsageError if none can."""
        found, reasons = [], []
        for fmt in self.formats:
            for rule, rounding, transform, outliers in itertools.product(
                self.rules(fmt), self.roundings, self.transforms, self.outliers
            ):
                why = why_not(fmt, rule, rounding)
                if why is None:
                    found.append(Recipe(fmt.name, fmt, rule, rounding, transform, outliers))
                elif why not in reasons:
                    reasons.append(why)
        if not found:
            raise UsageError(reasons[0])
        return found, reasons


def why_not(fmt: BlockFormat, rule: ScaleRule, rounding: Rounding) -> str | None:
    """Why the combination cannot be, or None."""
    if rule not in rules_for(fmt):
        return f"{fmt.name} takes the rules {', '.join(rules_for(fmt))}, but got {rule}"
    if rounding is Rounding.STOCHASTIC_NAIVE and fmt.scale is ScaleFormat.E8M0:
        return (
            f"{rounding} differs from {Rounding.STOCHASTIC} where scales are rounded, but those of "
            f"{fmt.name} are powers of two; choose {Rounding.STOCHASTIC}"
        )
    return None


def outliers_named(text: str) -> Outliers | None:
    """From `none`, `clamp-0.999` or `occ-0.999` (with compensation). UsageError otherwise."""
    if text == "none":
        return None
    match = re.fullmatch(r"(clamp|occ)-(0?\.\d{1,9})", text, re.ASCII)
    if match is None or float(match[2]) <= 0.5:
        raise UsageError(
            "--outliers reads none, clamp-Q, or occ-Q with compensation, with a quantile Q between "
            f"0.5 and 1, for example occ-0.99, but got {text!r}"
        )
    return Outliers(float(match[2]), compensate=match[1] == "occ")
