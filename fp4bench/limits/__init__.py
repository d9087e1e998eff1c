"""What the device can do at most, measured, and the least time that this leaves to a kernel."""

from fp4bench.limits.measuring import latest, measure
from fp4bench.limits.roofline import Bound, roofline

__all__ = ["Bound", "latest", "measure", "roofline"]
