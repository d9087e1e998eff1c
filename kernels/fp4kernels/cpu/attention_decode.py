"""Decode attention in C++ as a variant: what is tuned, and where it is legal."""

from __future__ import annotations

import torch
from torch import Tensor

from fp4kernels.attention.recipes import AttentionRecipe
from fp4kernels.attention.variant import (
    AttentionLauncher,
    AttentionVariant,
    Launched,
    Paged,
    Rounding,
)
from fp4kernels.attention.workload import AttentionWorkload, Phase
from fp4kernels.cpu.attention import (
    DecodeConfig,
    DecodeKernel,
    decode_object,
    default_config,
    formats_of,
    malformed,
)
from fp4kernels.cpu.build import unavailable
from fp4kernels.devices import Device, Toolchain
from fp4kernels.errors import BuildError, FormatError
from fp4kernels.transforms import transformed
from fp4kernels.variants import Arithmetic, Badge, Config, Proof

UNIT = 2.0**-24  # half a unit of float32
MOST_TAIL = 2  # times the keys: a longer split does what the shortest that holds them does


class CppAttentionDecode(AttentionVariant):
    """A cache in pages, decoded in registers, for all query heads of a kv head at once."""

    name = "cpp_attention_decode"
    backend = "cpu"
    config_type = DecodeConfig
    arithmetic = Arithmetic.INT8
    proof = Proof.DEVICE
    phase = Phase.DECODE

    def takes(self, recipe: AttentionRecipe, device: Device, toolchain: Toolchain) -> str | None:
        lacking = unavailable(device, toolchain)
        if lacking is not None:
            return lacking
        try:
            formats_of(recipe)
        except FormatError as error:
            return str(error)
        return None

    def badge(self, recipe: AttentionRecipe, device: Device) -> Badge:
        return Badge.EMULATED

    def computes_with(self, recipe: AttentionRecipe, device: Device) -> Arithmetic:
        return Arithmetic.INT8 if _integers(recipe, device)[0] else Arithmetic.FP32

    def rounding(self, config: Config, recipe: AttentionRecipe, device: Device) -> Rounding:
        """Queries and weights are integers of some bytes where values are E2M1, else float32."""
        assert isinstance(config, DecodeConfig)
        keys, values = _integers(recipe, device)
        return Rounding(
            query=2.0 ** (1 - 8 * config.q_bytes) if keys else 0.0,
            least=2.0 ** (-8 * config.p_bytes) if values else UNIT,
        )

    def default(
        self, workload: AttentionWorkload, recipe: AttentionRecipe, device: Device
    ) -> DecodeConfig:
        return default_config(workload.group, getattr(torch, workload.dtype))

    def malformed(self, config: Config, recipe: AttentionRecipe) -> str | None:
        assert isinstance(config, DecodeConfig)
        return malformed(config)

    def unsuited(
        self, config: Config, recipe: AttentionRecipe, workload: AttentionWorkload, device: Device
    ) -> str | None:
        """Why another configuration does the same or better; never of the untuned one."""
        assert isinstance(config, DecodeConfig)
        default = self.default(workload, recipe, device)
        rows = workload.group * workload.queries
        if config.rows > default.rows and config.rows >= 2 * rows:
            return f"rows={config.rows} would be at least half empty with {rows} query rows"
        if config.split > default.split and config.split >= MOST_TAIL * workload.keys:
            return (
                f"split={config.split} does not split {workload.keys} keys; a smaller does the same"
            )
        for name, used in zip(("q_bytes", "p_bytes"), _integers(recipe, device), strict=True):
            if not used and getattr(config, name) != getattr(default, name):
                return (
                    f"{name} are those of integers over FP4 on AVX-512, but {recipe.name} on "
                    f"{device.arch} takes float32"
                )
        return None

    def compile(
        self,
        config: Config,
        recipe: AttentionRecipe,
        workload: AttentionWorkload,
        device: Device,
        toolchain: Toolchain,
        seconds: float,
    ) -> None:
        assert isinstance(config, DecodeConfig)
        formats = formats_of(recipe)
        decode_object(formats, workload.head_dim, config, device, toolchain, seconds)

    def build(
        self, config: Config, recipe: AttentionRecipe, device: Device, toolchain: Toolchain
    ) -> AttentionLauncher:
        """Compiled for a head dim when it first meets it."""
        assert isinstance(config, DecodeConfig)
        why = malformed(config)
        if why is not None:
            raise BuildError(why)
        kernels: dict[int, DecodeKernel] = {}

        def launch(on: Launched, out: Tensor, lse: Tensor) -> None:
            assert isinstance(on, Paged)
            head_dim = out.shape[-1]
            if head_dim not in kernels:
                formats = formats_of(recipe)
                kernels[head_dim] = DecodeKernel(formats, head_dim, config, device, toolchain)
            turned, _ = transformed(on.q, recipe.rotation(head_dim))
            sums = out if out.dtype is torch.float32 else torch.empty_like(out, dtype=torch.float32)
            kernels[head_dim](
                turned, on.keys, on.values, on.page_table, on.lengths, on.order,
                window=on.window, scale=on.scale, into=(sums, lse),
            )  # fmt: skip
            if sums is not out:
                out.copy_(sums)

        return launch


def _integers(recipe: AttentionRecipe, device: Device) -> tuple[bool, bool]:
    """Whether K and V are multiplied as integers."""
    k, v = ((how.format.element.bits == 4) for how in (recipe.k, recipe.v))
    fast = device.has_avx512
    return fast and k, fast and v
