"""fp4bench: tune FP4 kernels on the device at hand, prove them, and hand the winners on."""

__version__ = "0.1.0"
