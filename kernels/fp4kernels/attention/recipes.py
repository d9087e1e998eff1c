"""Recipes of attention: the formats of Q, K, V and P, and what is done around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from fp4kernels.elements import E2M1
from fp4kernels.errors import FormatError
from fp4kernels.formats import MXINT8, TENSOR, WHOLE, named
from fp4kernels.recipes import RECIPES, Recipe, Rounding, ScaleRule, Transform
from fp4kernels.scales import ScaleFormat

HEAD_DIMS = (64, 96, 128, 256)
P_MAX = 6.0 * 448  # the largest value under an E4M3 block scale


@dataclass(frozen=True)
class AttentionRecipe:
    """How the operands of attention become FP4; None leaves one in the type that it came in.

    P, the probabilities, is quantized in blocks of 1 x 16 or 1 x 32 along the keys. It spans
    [0, p_scale]: 1 quantizes it directly, 2688 uses all that E4M3 block scales have (two-level P)
    and makes the largest probability of a row exact.
    Everything else is an axis of accuracy:

        smooth_k      K less its mean over the sequence: softmax takes no notice
        smooth_q      Q less the mean of each 128 tokens, whose product with K is added in float32
        rotate        Q and K by Hadamard transforms along D (only K is stored rotated in a cache)
        round_scale   P is divided by its block's scale as rounded, not by what was rounded
        reverse       keys from the last to the first, so that early large scores drown no others
    """

    name: str
    q: Recipe | None
    k: Recipe
    v: Recipe
    p: Recipe | None
    smooth_k: bool = True
    smooth_q: bool = True
    rotate: bool = False
    p_scale: float = P_MAX
    round_scale: bool = True
    reverse: bool = False

    def __post_init__(self) -> None:
        for operand in ("q", "k", "v", "p"):
            how: Recipe | None = getattr(self, operand)
            if how is not None and not _byte_scaled(how):
                raise FormatError(
                    "operands of attention are plain, in blocks of one row under scales of a byte, "
                    f"rounded to nearest, but {operand} is {how.name}; use nvfp4, mxfp4 or mxint8"
                )
        if self.p is not None and self.p.format.tensor_scale:
            raise FormatError(
                f"p_scale takes the place of a tensor scale of P, but got {self.p.name}; "
                "use nvfp4-single"
            )
        if not (math.isfinite(self.p_scale) and self.p_scale > 0):
            raise FormatError(f"p_scale must be finite and above 0, but got {self.p_scale}")
        if not self.round_scale and (self.p is None or self.p.format.scale is ScaleFormat.E8M0):
            raise FormatError(
                "only E4M3 scales of P can be rounded after the division, but "
                f"{self.name} has {'none' if self.p is None else self.p.name}"
            )

    @property
    def four_bit(self) -> bool:
        """Whether Q, K, V and P are all E2M1 under one kind of scale, as kernels multiply them."""
        operands = (self.q, self.k, self.v, self.p)
        known = [how.format for how in operands if how is not None]
        return len(known) == 4 and all(
            (fmt.element, fmt.scale, fmt.block_size) == (E2M1, known[0].scale, known[0].block_size)
            for fmt in known
        )

    @property
    def text(self) -> str:
        """The name, and the axes that differ from what it stands for: `attention_recipe` reads it."""
        base = ATTENTION_RECIPES.get(self.name)
        if base is None or (base.q, base.k, base.v, base.p) != (self.q, self.k, self.v, self.p):
            raise FormatError(
                f"only recipes made from {', '.join(ATTENTION_RECIPES)} have a text, "
                f"but {self.name!r} has other operands"
            )
        axes = [(axis, getattr(self, axis)) for axis in _AXES]
        return ",".join(
            [self.name, *(f"{a}={float(v):.17g}" for a, v in axes if v != getattr(base, a))]
        )

    def rotation(self, head_dim: int) -> Transform:
        """The largest Hadamard transform whose blocks fill the head dim."""
        if not self.rotate:
            return Transform.NONE
        return _ROTATIONS[math.gcd(head_dim, 128)]


def check_four_bit(recipe: AttentionRecipe) -> None:
    """FormatError unless prefill can multiply it."""
    if not recipe.four_bit:
        raise FormatError(
            f"prefill multiplies FP4 under one kind of scale, but {recipe.name} has other operands; "
            "use nvfp4 or mxfp4"
        )


def check_head_dim(head_dim: int) -> None:
    """FormatError unless kernels know it."""
    if head_dim not in HEAD_DIMS:
        raise FormatError(f"the head dim must be one of {HEAD_DIMS}, but got {head_dim}")


def attention_recipe(text: str) -> AttentionRecipe:
    """A named recipe with axes changed, like "nvfp4,smooth_q=0,p_scale=1".

    Raises FormatError with the nearest name where the recipe or an axis is unknown.
    """
    name, *changes = text.split(",")
    base = named("attention recipe", name, ATTENTION_RECIPES)
    values: dict[str, float] = {}
    for change in changes:
        axis, _, value = change.partition("=")
        kind = named("axis of attention", axis, _AXES)
        try:
            values[axis] = kind(float(value))
        except ValueError:
            raise FormatError(f"an axis is a name and a number, but got {change!r}") from None
    return replace(base, **values)  # type: ignore[arg-type]


def _byte_scaled(how: Recipe) -> bool:
    fmt = how.format
    rows = fmt.block_shape != TENSOR and fmt.block_shape[0] == 1 and fmt.block_size != WHOLE
    plain = how.plain and how.rounding is Rounding.NEAREST_EVEN
    return rows and plain and fmt.scale in (ScaleFormat.E4M3, ScaleFormat.E8M0)


_ROTATIONS = {
    32: Transform.HADAMARD_32,
    64: Transform.HADAMARD_64,
    128: Transform.HADAMARD_128,
}
_AXES = {
    field.name: (float if field.name == "p_scale" else bool)
    for field in fields(AttentionRecipe)
    if field.name not in ("name", "q", "k", "v", "p")
}

# nothing clips: what is cut from the largest probability would be missing from the output
_MX = replace(RECIPES["mxfp4"], name="mxfp4-rceil", scale_rule=ScaleRule.RCEIL)
_K8 = Recipe("mxint8-rceil", MXINT8, ScaleRule.RCEIL)  # as long as E4M3, and errs less
_NV, _NV_SINGLE = RECIPES["nvfp4"], RECIPES["nvfp4-single"]

NVFP4_ATTENTION = AttentionRecipe("nvfp4", _NV, _NV, _NV, _NV_SINGLE)
# block scales alone, as SageAttention3 has it: one pass fewer to quantize
SINGLE_ATTENTION = AttentionRecipe("nvfp4-single", _NV_SINGLE, _NV_SINGLE, _NV_SINGLE, _NV_SINGLE)
# powers of two lose nothing in P as it is, and a row's largest probability, 1, is exact
MXFP4_ATTENTION = AttentionRecipe("mxfp4", _MX, _MX, _MX, _MX, p_scale=1.0)
K8V4_ATTENTION = AttentionRecipe("k8v4", None, _K8, _NV, None, smooth_k=False, smooth_q=False)

ATTENTION_RECIPES: Mapping[str, AttentionRecipe] = {
    how.name: how for how in (NVFP4_ATTENTION, SINGLE_ATTENTION, MXFP4_ATTENTION, K8V4_ATTENTION)
}
