"""Other ways to do the same attention, raced beside the kernels of this project."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fp4bench.trials import SDPA
from fp4kernels.attention.storing import Held, Order
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.cpu.attention import BF16, DecodeKernel, default_config
from fp4kernels.devices import Device, Toolchain
from fp4kernels.variants import Arithmetic

PLAUSIBLE = 0.02  # of the norm, for products of bf16 and an output of bf16
MEMORY_SHARE = 0.5  # of the device's that one baseline may take

Call = Callable[[], Tensor]  # O [B, Sq, heads, D]


class AttentionBaseline(ABC):
    """Attention over K and V in bf16, done otherwise. Stateless."""

    name: ClassVar[str]
    arithmetic: ClassVar[Arithmetic] = Arithmetic.BF16

    def kv_bytes(self, workload: AttentionWorkload) -> float:
        """Of one copy of what it reads."""
        return workload.kv_bytes(32)

    def absent(
        self, workload: AttentionWorkload, device: Device, toolchain: Toolchain
    ) -> str | None:
        """What is missing to run the workload here, or None."""
        needed, most = 2 * self.kv_bytes(workload), MEMORY_SHARE * device.memory_bytes
        if needed <= most:
            return None
        return (
            f"two copies of K and V in bf16 take {needed / 1e9:.1f} GB, over half of the "
            f"{device.memory_bytes / 1e9:.1f} GB of {device.name}"
        )

    @abstractmethod
    def prepare(
        self,
        operands: tuple[Tensor, Tensor, Tensor],
        workload: AttentionWorkload,
        here: tuple[Device, Toolchain],
        copies: int,
    ) -> list[Call]:
        """Untimed; one call per copy, each over K and V in memory of its own.

        `operands` are q [B, Sq, heads, D] and k, v [keys, kv_heads, D] of every sequence.
        """

    def implausible(self, output: Tensor, expected: Tensor) -> str | None:
        """Why `output` cannot be `expected`, or None: a wrong baseline proves nothing."""
        error = float((output.double() - expected).norm() / expected.norm())
        if error <= PLAUSIBLE:
            return None
        return f"{self.name} is off by {error:.3g} of the norm, over {PLAUSIBLE:g}"


class TorchSdpa(AttentionBaseline):
    """torch's own, by whichever of its kernels it chooses; kv heads are not repeated."""

    name = SDPA
    repeated: ClassVar[bool] = False

    def prepare(
        self,
        operands: tuple[Tensor, Tensor, Tensor],
        workload: AttentionWorkload,
        here: tuple[Device, Toolchain],
        copies: int,
    ) -> list[Call]:
        q, k, v = operands
        group = workload.group if self.repeated else 1
        left = q.bfloat16().transpose(1, 2)
        heads = [x.bfloat16().transpose(0, 1).repeat_interleave(group, 0) for x in (k, v)]
        square = workload.queries == workload.keys and not workload.window
        one = workload.queries == 1 and not workload.window
        mask = None
        if not square and not one:  # torch's own causal mask is not aligned with the last key
            mask = workload.mask.visible(workload.queries, workload.keys, q.device)

        def call(keys: Tensor, values: Tensor) -> Tensor:
            out = sdpa(
                left, keys, values, attn_mask=mask, is_causal=square and not one,
                enable_gqa=not self.repeated,
            )  # fmt: skip
            return out.transpose(1, 2)

        shape = (workload.batch, -1, -1, -1)
        return [
            functools.partial(call, *(x.expand(shape).contiguous() for x in heads))
            if workload.batch > 1
            else functools.partial(call, *(x[None].clone() for x in heads))
            for _ in range(copies)
        ]


class TorchSdpaRepeated(TorchSdpa):
    """The same with every kv head held once for each of its query heads."""

    name = "torch_sdpa_repeated"
    repeated = True

    def kv_bytes(self, workload: AttentionWorkload) -> float:
        return workload.group * super().kv_bytes(workload)

    def absent(
        self, workload: AttentionWorkload, device: Device, toolchain: Toolchain
    ) -> str | None:
        if workload.group == 1:
            return "every query head has a kv head of its own"
        return super().absent(workload, device, toolchain)


class Bf16Cache(AttentionBaseline):
    """The project's C++ decode kernel, untuned, over a cache in bf16."""

    name = "bf16_cache"
    arithmetic = Arithmetic.FP32

    def absent(
        self, workload: AttentionWorkload, device: Device, toolchain: Toolchain
    ) -> str | None:
        if device.kind != "cpu" or workload.phase != Phase.DECODE:
            return "only the CPU's decode kernel reads a cache in bf16"
        if toolchain.compiler is None:
            return "needs a C++ compiler, but none of c++, g++, clang++ is on PATH"
        return super().absent(workload, device, toolchain)

    def prepare(
        self,
        operands: tuple[Tensor, Tensor, Tensor],
        workload: AttentionWorkload,
        here: tuple[Device, Toolchain],
        copies: int,
    ) -> list[Call]:
        q, k, v = operands
        config, page = default_config(workload.group, torch.bfloat16), workload.page_size
        kernel = DecodeKernel((BF16, BF16), workload.head_dim, config, *here)
        pages, batch = -(-workload.keys // page), workload.batch
        table = torch.arange(batch * pages, dtype=torch.int32).view(batch, pages)
        lengths = torch.full((batch,), workload.keys, dtype=torch.int32)
        none, one = torch.zeros(1, dtype=torch.uint8), torch.ones(())
        rooms = []
        for x in (k, v):
            room = x.new_zeros(pages * page, *x.shape[1:], dtype=torch.bfloat16)
            room[: len(x)] = x
            rooms.append(room.view(pages, page, *x.shape[1:]))

        def call(keys: Held, values: Held) -> Tensor:
            found = kernel(
                q, keys, values, table, lengths, Order.NHD,
                window=workload.window, scale=workload.scale,
            )  # fmt: skip
            return found[0].to(q.dtype)

        return [
            functools.partial(call, *(Held(x.repeat(batch, 1, 1, 1), none, one) for x in rooms))
            for _ in range(copies)
        ]


ATTENTION_BASELINES: Mapping[str, AttentionBaseline] = {
    baseline.name: baseline for baseline in (TorchSdpa(), TorchSdpaRepeated(), Bf16Cache())
}
