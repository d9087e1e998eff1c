"""Everything that fp4kernels raises on purpose.

Fp4Error
├── FormatError      unknown format or recipe, or values that do not fit one
├── WorkloadError    a shape that cannot be run
├── LayoutError      a weight held in another layout than the kernel reads
├── BuildError       no compiler, or a compiler that failed
│   └── BuildTimeoutError    a compiler that did not end
├── TableError       a table that is damaged or was made for another device
├── CacheError       a KV cache that is full, or has no such sequence or tokens
└── DeviceError      no device of the kind asked for
"""


class Fp4Error(Exception):
    """Base of all errors of this package; the message states the rule, the values, the way out."""


class FormatError(Fp4Error, ValueError):
    """An unknown format or recipe, or a tensor that does not fit its blocks."""


class WorkloadError(Fp4Error, ValueError):
    """A problem size that is zero, absurd or no multiple of the block."""


class LayoutError(Fp4Error, ValueError):
    """A weight is held in another memory layout than the kernel reads."""


class BuildError(Fp4Error, RuntimeError):
    """A kernel could not be built; carries the compiler's last lines."""


class BuildTimeoutError(BuildError):
    """The compiler did not end within its time and was killed."""


class TableError(Fp4Error, ValueError):
    """A tuned table is damaged, incomplete, or made for another device."""


class CacheError(Fp4Error, ValueError):
    """A KV cache that is full, or tokens that it does not hold; nothing was written."""


class DeviceError(Fp4Error, RuntimeError):
    """No device of the requested kind is usable."""
