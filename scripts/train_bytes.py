"""Train the byte-level transformer of `check_bytes.py` on the sources of this Python's library.

    python scripts/train_bytes.py --out models/bytes

Some minutes on two cores. One source file of sixteen is held out, by the hash of its
name. It may be stopped: a checkpoint in the folder of `--work` lets it go on. Writes
weights.safetensors (bfloat16; what it was trained on, and how well, in its metadata) and
held_out.bin, eight pieces of text it has not seen. Exit 1 if the loss on held-out text is not below
2.0 bits a byte at last.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "scripts")]

import torch  # noqa: E402
import typer  # noqa: E402
from byte_model import (  # noqa: E402
    CONTEXT,
    FOLDER,
    HELD_OUT,
    WEIGHTS,
    ByteModel,
    bits,
    causal,
    split,
    windows,
)
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

MARK = 2.0  # bits a byte
BATCH, RATE, WARMUP, DECAY = 16, 3e-3, 100, 0.3  # the last share of the steps
SEED, PIECES, JUDGED, EVERY = 0, 8, 256, 100


def main(
    out: Annotated[Path, typer.Option(help="folder that gets weights and text")] = FOLDER,
    work: Annotated[Path, typer.Option(help="folder of the checkpoint")] = Path("build/bytes"),
    steps: Annotated[int, typer.Option(help=f"batches of {BATCH} x {CONTEXT} bytes")] = 700,
) -> None:
    """Train, judge, write."""
    torch.manual_seed(SEED)
    train, held = split()
    print(f"{len(train)} bytes to train on, {len(held)} held out", flush=True)
    text, judged = torch.frombuffer(bytearray(train), dtype=torch.uint8), windows(held, JUDGED)
    model = ByteModel()
    trained(model, text, judged, steps, work / "checkpoint.pt")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    loss = held_out(model, judged)
    print(f"{loss:.4f} bits a byte on held-out text, with weights in bfloat16")
    write(model, calibration(model, windows(train, PIECES)), held, out, {
        "bits_per_byte": f"{loss:.4f}", "steps": str(steps), "seed": str(SEED),
        "text": f"Python {platform.python_version()}", "torch": torch.__version__,
        "train_sha256": hashlib.sha256(train).hexdigest(),
        "held_out_sha256": hashlib.sha256(held).hexdigest(),
    })  # fmt: skip
    raise SystemExit(loss >= MARK)


def trained(model: ByteModel, text: Tensor, judged: Tensor, steps: int, kept: Path) -> None:
    """From the checkpoint `kept` on, if there is one."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    rest = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    first = 0
    if kept.exists():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    kept.parent.mkdir(parents=True, exist_ok=True)
    began, mean = time.perf_counter(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step, steps)
        loss = batch_loss(model, text, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean += float(loss.detach())
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            speed = (time.perf_counter() - began) / (step + 1 - first)
            print(
                f"step {step + 1} of {steps}: {mean / (step % EVERY + 1):.3f} bits a byte, "
                f"{held_out(model, judged[::BATCH]):.3f} held out, {speed:.2f} s a step", flush=True,
            )  # fmt: skip
            mean = 0.0
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            part = kept.with_suffix(".part")
            torch.save(state | {"step": step + 1}, part)
            part.replace(kept)


def rate(step: int, steps: int) -> float:
    """Up, level, and down to nothing."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def batch_loss(model: ByteModel, text: Tensor, step: int) -> Tensor:
    """Of windows that the step's number chooses, so that one can begin anywhere."""
    generator = torch.Generator().manual_seed(SEED + step)
    starts = torch.randint(0, len(text) - CONTEXT, (BATCH, 1), generator=generator)
    batch = text[starts + torch.arange(CONTEXT + 1)].long()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1])
    return bits(logits, batch)


@torch.no_grad()
def held_out(model: ByteModel, judged: Tensor) -> float:
    model.eval()
    losses = [float(bits(model(some[:, :-1]), some)) for some in judged.split(BATCH)]  # type: ignore[no-untyped-call]
    model.train()
    return sum(losses) / len(losses)


@torch.no_grad()
def calibration(model: ByteModel, text: Tensor) -> dict[str, Tensor]:
    """Of text it was trained on: the largest magnitudes of K and V of each layer, and the mean of K
    [layers, kv_heads, D]."""
    found: dict[str, list[Tensor]] = {"k_amax": [], "v_amax": [], "k_mean": []}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for name, value in (
            ("k_amax", k.abs().amax()), ("v_amax", v.abs().amax()), ("k_mean", k.mean((0, 1)))
        ):  # fmt: skip
            found[name].append(value)
        return causal(layer, q, k, v)

    model.eval()(text[:, :-1], attend)
    return {f"calibration.{name}": torch.stack(values) for name, values in found.items()}


def write(
    model: ByteModel, calibrated: dict[str, Tensor], held: bytes, out: Path, said: dict[str, str]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights | calibrated, out / WEIGHTS.name, metadata=said)
    (out / HELD_OUT.name).write_bytes(bytes(windows(held, PIECES).flatten().tolist()))


if __name__ == "__main__":
    typer.run(main)
