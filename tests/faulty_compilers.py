"""A compiling process in which the faulty variants are known."""

from __future__ import annotations

from faulty_variants import FAULTY
from fp4bench import compilers
from fp4kernels import registry

if __name__ == "__main__":
    registry.VARIANTS.update(FAULTY)  # type: ignore[attr-defined]
    compilers.main()
