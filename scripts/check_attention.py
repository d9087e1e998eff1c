"""What the axes of FP4 attention do to its error, on synthetic tensors with outliers, on the CPU.

    python scripts/check_attention.py --out results/attention

Simulated in torch and compared with float64: every kind of input, every recipe below, full and causal,
over SEEDS draws; with all operands rounded, and with P alone. Writes accuracy.jsonl, a row for each;
prints the means over draws and masks. Exit 1 unless the orders that others have published hold in those
means: two-level P before direct P, NVFP4 before MXFP4, smoothing K before none, both smoothings before
that, and, where early keys take the weight and have no values, direct P from the last key to the first
before direct P the other way.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from fp4kernels.attention.accuracy import AttentionError, errors  # noqa: E402
from fp4kernels.attention.operands import TILE, prepare  # noqa: E402
from fp4kernels.attention.problem import Mask, Segments, mask_named  # noqa: E402
from fp4kernels.attention.recipes import attention_recipe  # noqa: E402
from fp4kernels.attention.reference import attention  # noqa: E402
from fp4kernels.attention.simulate import LOG2_E, online, simulate  # noqa: E402
from fp4kernels.attention.synthetic import IDLE_SINK, KINDS, inputs  # noqa: E402

TOKENS, HEADS, KV_HEADS, HEAD_DIM, SEEDS = 512, 4, 2, 128, 2
NONE, DIRECT = "smooth_q=0,smooth_k=0", "p_scale=1"
RECIPES = (
    "nvfp4", "nvfp4-single", "mxfp4", f"nvfp4,{DIRECT}", "nvfp4,p_scale=256", "nvfp4,p_scale=448",
    "nvfp4,round_scale=0", "nvfp4,reverse=1", f"nvfp4,{DIRECT},reverse=1", "nvfp4,smooth_q=0",
    f"nvfp4,{NONE}", f"nvfp4,{NONE},rotate=1", f"mxfp4,{NONE}", "mxfp4,p_scale=2688",
)  # fmt: skip
OF_P = (
    "nvfp4", "mxfp4", f"nvfp4,{DIRECT}", "nvfp4,p_scale=256", "nvfp4,p_scale=448",
    "nvfp4,round_scale=0", "nvfp4,reverse=1", f"nvfp4,{DIRECT},reverse=1", "mxfp4,p_scale=2688",
)  # fmt: skip
ALONE = "P alone: "
ALL_KINDS = (*KINDS, IDLE_SINK)
# (better, worse, on which inputs)
ORDERS = (
    ("nvfp4", f"nvfp4,{DIRECT}", KINDS),
    (f"{ALONE}nvfp4", f"{ALONE}nvfp4,{DIRECT}", KINDS),
    (f"{ALONE}nvfp4", f"{ALONE}mxfp4", KINDS),
    ("nvfp4", "mxfp4", KINDS),
    (f"nvfp4,{NONE}", f"mxfp4,{NONE}", KINDS),
    ("nvfp4,smooth_q=0", f"nvfp4,{NONE}", ("outliers", "biased-k")),
    ("nvfp4", "nvfp4,smooth_q=0", ("outliers",)),
    (f"{ALONE}nvfp4,{DIRECT},reverse=1", f"{ALONE}nvfp4,{DIRECT}", (IDLE_SINK,)),
)


def main(
    out: Annotated[Path, typer.Option(help="folder that gets accuracy.jsonl")],
    tokens: Annotated[int, typer.Option(help="queries and keys of a sequence")] = TOKENS,
) -> None:
    """Simulate, write, and judge."""
    rows = list(measured(tokens))
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row) + "\n" for row in rows)
    (out / "accuracy.jsonl").write_text("".join(lines))
    means = means_of(rows)
    show(means)
    wrong = misordered(means)
    for line in wrong:
        print(line)
    raise SystemExit(bool(wrong))


def measured(tokens: int) -> Iterator[dict[str, object]]:
    for kind in ALL_KINDS:
        for seed in range(SEEDS):
            q, k, v = inputs(kind, tokens, tokens, HEADS, KV_HEADS, HEAD_DIM, seed)
            for mask in (mask_named("full"), mask_named("causal")):
                exact = attention(q, k, v, mask, Segments((0, tokens), (0, tokens)))
                found = {recipe: error(q, k, v, recipe, mask, exact) for recipe in RECIPES}
                found |= {ALONE + name: error_of_p(q, k, v, name, mask, exact) for name in OF_P}
                for recipe, one in found.items():
                    yield {
                        "data": kind, "seed": seed, "mask": mask.kind.value, "recipe": recipe,
                        "tokens": tokens, "heads": HEADS, "kv_heads": KV_HEADS,
                        "head_dim": HEAD_DIM, **asdict(one),
                    }  # fmt: skip


def error(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, recipe: str, mask: Mask,
    exact: tuple[torch.Tensor, torch.Tensor],
) -> AttentionError:  # fmt: skip
    how, scale = attention_recipe(recipe), q.shape[-1] ** -0.5
    operands = prepare(q, k, v, Segments((0, len(q)), (0, len(k))), how, scale)
    return errors(*simulate(operands, how, mask, scale, q.shape[-1]), *exact)


def error_of_p(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, recipe: str, mask: Mask,
    exact: tuple[torch.Tensor, torch.Tensor],
) -> AttentionError:  # fmt: skip
    """Of scores and values as they are."""
    group = q.shape[1] // k.shape[1]
    left, right, values = (x.transpose(0, 1) for x in (q, k, v))
    right, values = (x.repeat_interleave(group, 0) for x in (right, values))
    scores = left @ right.transpose(1, 2) * (q.shape[-1] ** -0.5 * LOG2_E)
    scores = scores.masked_fill(~mask.visible(len(q), len(k), q.device), -torch.inf)
    out, lse = online(scores, values.transpose(1, 2), attention_recipe(recipe), TILE)
    return errors(out.transpose(0, 1), lse, *exact)


def means_of(rows: list[dict[str, object]]) -> dict[tuple[str, str], dict[str, float]]:
    """(kind, recipe) → the mean of each figure over draws and masks."""
    grouped: dict[tuple[str, str], list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        grouped[str(row["data"]), str(row["recipe"])].append(row)
    names = AttentionError.__dataclass_fields__
    return {
        key: {name: fmean(float(str(row[name])) for row in some) for name in names}
        for key, some in grouped.items()
    }


def misordered(means: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    """Which of the published orders do not hold in the SQNR."""
    return [
        f"{kind}: {better} has {means[kind, better]['sqnr']:.2f} dB, no more than {worse} with "
        f"{means[kind, worse]['sqnr']:.2f} dB"
        for better, worse, kinds in ORDERS
        for kind in kinds
        if means[kind, better]["sqnr"] <= means[kind, worse]["sqnr"]
    ]


def show(means: dict[tuple[str, str], dict[str, float]]) -> None:
    table = Table("recipe", *(f"{kind}: dB, cosine" for kind in ALL_KINDS), box=None)
    for recipe in (*RECIPES, *(ALONE + name for name in OF_P)):
        cells = [means[kind, recipe] for kind in ALL_KINDS]
        table.add_row(recipe, *(f"{cell['sqnr']:.2f}  {cell['cosine']:.4f}" for cell in cells))
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
