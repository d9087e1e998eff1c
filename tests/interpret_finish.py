"""Run GEMMs with epilogues under the Triton interpreter; a child process of test_epilogues.py.

As interpret_decode.py: null for each [variant, recipe, config values, [M, N, K], activation, next
recipe, dtype] where the gate passes, else the reason. The argument `mistakes` makes each of
MISTAKES instead, and answers with those that pass; `functions` checks activations and quantized
outputs alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fp4kernels import finished_gate, gate
from fp4kernels.epilogues import Activation, Added, Epilogue, empty_output, finished, quantized
from fp4kernels.finished_gate import EVALUATED, UNIT
from fp4kernels.formats import MXFP4
from fp4kernels.packing import Packed
from fp4kernels.recipes import ScaleRule
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.triton.finish_kernel import activated
from fp4kernels.triton.finish_launch import Finish
from interpret_decode import CPU, TOOLCHAIN, loops_run


@triton.jit
def activate(x, out, columns: tl.constexpr, left: tl.constexpr, activation: tl.constexpr):
    values = tl.load(x + tl.arange(0, columns))[None, :]
    values = activated(values, activation)
    tl.store(out + tl.arange(0, left)[None, :], values)


GELU = Activation.GELU
Mistake = Callable[[Epilogue, Added], tuple[Epilogue, Added]]
MISTAKES: dict[str, Mistake] = {
    "no bias": lambda how, added: (how, added._replace(bias=None)),
    "no residual": lambda how, added: (how, added._replace(residual=None)),
    "other activation": lambda how, added: (
        replace(how, activation=GELU if how.activation is Activation.NONE else Activation.NONE),
        added,
    ),
    "other amax": lambda how, added: (
        how, added._replace(amax=None if added.amax is None else added.amax * 2)
    ),
}  # fmt: skip


def check_gate(
    name: str, recipe_name: str, values: dict[str, int], shape: list[int],
    activation: str, following: str, dtype: str, mistake: Mistake | None = None,
) -> str | None:  # fmt: skip
    kernel, recipe = variant(name), recipe_named(recipe_name)
    if recipe.format == MXFP4 and recipe.window is None:  # a tensor scale other than 1
        recipe = replace(recipe, scale_rule=ScaleRule.FLOOR_3_4)
    config, epilogue = kernel.config(values), Epilogue(Activation(activation), following)

    def launch(x: Packed | Tensor, w: Packed, added: Added, out: Tensor | Packed) -> None:
        how, given = (epilogue, added) if mistake is None else mistake(epilogue, added)
        kernel.build_finished(how, config, recipe, CPU, TOOLCHAIN)(x, w, given, out)

    m, n, k = shape
    case = gate.synthetic_case("outliers", recipe, (m, n, k), 7, torch.device("cpu"))
    # the interpreter sums in float32, whatever the device does
    return finished_gate.check(
        launch, kernel.layout, UNIT, case, epilogue, getattr(torch, dtype)
    ).why


def unnoticed(case: list[Any]) -> list[str]:
    """The mistakes that change something and that the gate lets pass."""
    activation, following = case[4:6]
    found = []
    for what, mistake in MISTAKES.items():
        if (what == "other amax" and following != "nvfp4") or (
            what == "other activation" and activation == "swiglu"  # of another width
        ):
            continue
        if check_gate(*case, mistake=mistake) is None:
            found.append(what)
    return found


def edges() -> torch.Tensor:
    """Every exponent of float32 but the last, which torch doubles, both signs, and zeros."""
    powers = torch.exp2(torch.arange(-149, 127).float())
    some = torch.linspace(-30, 30, 4001)
    x = torch.cat([powers, -powers, 1.4 * powers[:-1], some, torch.zeros(1), -torch.zeros(1)])
    return torch.nn.functional.pad(x, (0, 8192 - len(x)))


def functions() -> Iterator[str]:
    x = edges()
    for activation in (Activation.GELU, Activation.GELU_TANH, Activation.SWIGLU):
        given = x
        if activation is Activation.SWIGLU:
            given = torch.stack(
                (x[:4096].clamp(-1e30, 1e30), x[:4096].flip(0).clamp(-1e3, 1e3)), 1
            ).flatten()
        epilogue = Epilogue(activation)
        left = epilogue.columns(8192)
        out = torch.empty(1, left)
        activate[(1,)](given, out, 8192, left, activation.value)
        wanted = finished(given.double().view(1, -1), epilogue, Added())
        size, least = given.double().view(1, -1).abs(), torch.ones(1)
        if activation is Activation.SWIGLU:
            least = size[:, 1::2] + 1  # what is lost below float32's numbers, times `up`
            size = size[:, 0::2] * size[:, 1::2]
        plain = finished(given.view(1, -1), epilogue, Added())
        for which, found in (("kernel", out), ("torch", plain)):
            allowed = (EVALUATED + 2) * UNIT * size + 2.0**-149 * least
            wrong = ~((found.double() - wanted).abs() <= allowed)
            if wrong.any():
                at = int(wrong.nonzero()[0, 1])
                yield f"{which} {activation} {at}: {found[0, at]} for {wanted[0, at]}"


def quantizing() -> Iterator[str]:
    """Bit for bit as fp4kernels.epilogues.quantized, with blocks that are not finite."""
    generator = torch.Generator().manual_seed(2)
    exponents = torch.randint(-140, 126, (6, 32, 1), generator=generator)
    x = torch.randn(6, 32, 32, generator=generator) * torch.exp2(exponents.float())
    near = torch.randn(6, 32, 32, generator=generator)
    for name, rule in (
        *(("mxfp4", rule) for rule in ("floor", "ceil", "rceil", "even", "floor-3/4")),
        ("nvfp4", "nv"),
    ):
        how = replace(recipe_named(name), scale_rule=ScaleRule(rule))
        epilogue = NextRule(recipe=name, rule=rule)
        values = (x if name == "mxfp4" else near).flatten(1).clone()
        values[1, 40], values[2, 70], values[3] = float("nan"), float("inf"), 0.0
        amax = torch.tensor(1.5) if name == "nvfp4" else None
        added = Added(amax=amax)
        out = empty_output(6, 1024, epilogue, torch.float32, torch.device("cpu"))
        assert isinstance(out, Packed)
        one = torch.ones(())
        Finish(epilogue).reduce(values[None], (None, one), added, out)
        wanted = quantized(values, how, amax)
        finite = values.view(6, -1, how.format.block_size).isfinite().all(-1)
        codes = finite.repeat_interleave(how.format.block_size // 2, 1)
        if not torch.equal(out.scales, wanted.scales):
            yield f"{name} {rule}: scales"
        if not torch.equal(out.codes[codes], wanted.codes[codes]):
            yield f"{name} {rule}: codes"
        if not torch.equal(out.tensor_scale, wanted.tensor_scale):
            yield f"{name} {rule}: tensor scale"


class NextRule(Epilogue):
    """An epilogue whose recipe has another rule."""

    def __init__(self, recipe: str, rule: str) -> None:
        super().__init__(recipe=recipe)
        object.__setattr__(self, "rule", ScaleRule(rule))

    @property
    def next_recipe(self) -> Any:
        return replace(recipe_named(self.recipe), scale_rule=self.rule)  # type: ignore[attr-defined]


def main() -> None:
    answers: list[Any]
    if not loops_run():
        answers = ["skip"]
    elif sys.argv[1:] == ["functions"]:
        answers = [*functions(), *quantizing()]
    elif sys.argv[1:] == ["mistakes"]:
        answers = [unnoticed(case) for case in json.load(sys.stdin)]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
