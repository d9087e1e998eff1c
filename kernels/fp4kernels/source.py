"""Which kernels these are: what was measured with other code says nothing of this one."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parent


@functools.cache
def digest(*parts: str, without: tuple[str, ...] = ()) -> str:
    """Hash of the sources of this package, or of `parts`, paths in it that may be patterns, but for
    those `without`: 16 hexadecimal digits."""
    files = {file for part in parts or ("**/*",) for file in ROOT.glob(part)}
    files -= {file for part in without for file in ROOT.glob(part)}
    found = hashlib.sha256()
    for file in sorted(f for f in files if f.suffix in (".py", ".cpp", ".h")):
        found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]
