"""How many programs one core holds at once."""

from __future__ import annotations

from fp4bench.boards import Core

REGISTER_GRANULE = 8  # a thread's registers are given out by eights, on either maker's GPUs
SHARED_GRANULE = 128  # bytes
SYSTEM_SHARED = 1 << 10  # bytes of every program that NVIDIA keeps, since sm_80


def resident(core: Core, registers: int, shared_bytes: int, warps: int) -> int:
    """Programs of `warps` warps on one core; 0 where not even one fits.

    The smallest of what registers, shared memory, threads and program slots allow, as in NVIDIA's
    occupancy calculator (CUDA C++ Best Practices Guide, "Calculating Occupancy").
    """
    threads = warps * core.warp
    held = -(-max(registers, 1) // REGISTER_GRANULE) * REGISTER_GRANULE * threads
    system = SYSTEM_SHARED if core.warp == 32 else 0
    shared = -(-(shared_bytes + system) // SHARED_GRANULE) * SHARED_GRANULE
    if shared_bytes > core.shared_kib_per_program << 10:
        return 0
    by_shared = (core.shared_kib << 10) // shared if shared else core.programs
    return min(core.registers // held, by_shared, core.threads // threads, core.programs)
