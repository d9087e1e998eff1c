"""Memory that shows a kernel's slips: outputs with guarded borders, and scratch that is poisoned."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CANARY = 0xA5
MARGIN = 4096  # bytes of canary around an output that has no guard pages
ALIGNMENT = 64  # what kernels may expect of a buffer's start
_PROT_NONE = 0
_FILL = "fill_uninitialized_memory"
_M_PERTURB = -6  # of glibc's mallopt


@dataclass(frozen=True, eq=False)
class GuardedOutput:
    """`out` [M, N] within `room`, whose other bytes hold CANARY."""

    out: Tensor
    room: Tensor
    start: int

    @property
    def intact(self) -> bool:
        """Whether nothing beside `out` was written."""
        end = self.start + self.out.numel() * self.out.element_size()
        return all(
            bool((part == CANARY).all()) for part in (self.room[: self.start], self.room[end:])
        )


def canaried(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> GuardedOutput:
    """An output in the middle of a larger buffer, on any device."""
    size = shape[0] * shape[1] * dtype.itemsize
    room = torch.full((size + 2 * MARGIN,), CANARY, dtype=torch.uint8, device=device)
    return GuardedOutput(_view(room, MARGIN, size, shape, dtype), room, MARGIN)


def fenced(shape: tuple[int, int], dtype: torch.dtype, at_end: bool) -> GuardedOutput:
    """An output in CPU memory between two pages that no one may touch.

    Its start, or with `at_end` its end rounded up to ALIGNMENT, lies on such a page: a write
    beyond is a segmentation fault, so this is for processes that may die.
    """
    page, size = mmap.PAGESIZE, shape[0] * shape[1] * dtype.itemsize
    body = -(-size // page) * page
    memory = mmap.mmap(-1, body + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for fence in (address, address + page + body):
        if libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    room = torch.frombuffer(memory, dtype=torch.uint8, count=body, offset=page)
    room.fill_(CANARY)
    start = body - -(-size // ALIGNMENT) * ALIGNMENT if at_end else 0
    return GuardedOutput(_view(room, start, size, shape, dtype), room, start)


@contextlib.contextmanager
def poisoned_scratch() -> Iterator[None]:
    """Fresh memory holds NaN (torch.empty) or rubbish (malloc), so that reading it shows."""
    strict = torch.are_deterministic_algorithms_enabled()
    filling = getattr(torch.utils.deterministic, _FILL)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    perturb = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    torch.use_deterministic_algorithms(True, warn_only=True)  # the fill is part of this mode
    setattr(torch.utils.deterministic, _FILL, True)
    perturb(_M_PERTURB, CANARY)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        perturb(_M_PERTURB, 0)
        setattr(torch.utils.deterministic, _FILL, filling)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def _view(
    room: Tensor, start: int, size: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return room[start : start + size].view(dtype).view(shape)
