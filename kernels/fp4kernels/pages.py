"""Memory in large pages, for weights that a kernel reads faster than small pages can be looked up."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2 << 20  # bytes, on x86-64 and on aarch64 with pages of 4 KB
LEAST = 2 * LARGE_PAGE  # of less, what stays empty of the last page would be too large a share


def in_large_pages(x: Tensor) -> Tensor:
    """A copy of a contiguous CPU tensor, for which Linux was asked for pages of 2 MB; `x` itself where
    it is small, on a GPU, no plain tensor, or where the system has no such pages."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    plain = type(x) is Tensor and x.device.type == "cpu" and x.is_contiguous()
    if advice is None or not plain or x.nbytes < LEAST:
        return x
    # private: shared memory takes large pages only where its mount says so
    memory = mmap.mmap(-1, x.nbytes + LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(advice)
    except OSError:  # a kernel that was built without them
        return x
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % LARGE_PAGE
    # a storage of just these bytes: who saves the tensor saves no more
    held = torch.frombuffer(memory, dtype=torch.uint8, count=x.nbytes, offset=start)
    return held.view(x.dtype).view(x.shape).copy_(x)
