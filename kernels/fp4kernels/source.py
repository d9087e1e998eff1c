"""Which kernels these are: what was measured with other code says nothing of this one."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def digest() -> str:
    """Hash of all sources of this package, 16 hexadecimal digits."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for file in sorted(f for f in root.rglob("*") if f.suffix in (".py", ".cpp", ".h")):
        found.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]
