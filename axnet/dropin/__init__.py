"""Fast layers inside models that exist: `accelerate` finds by structure what the kernels serve, `restore` undoes it."""

from axnet.dropin.accelerating import accelerate, restore
from axnet.dropin.report import Report, Row

__all__ = ["Report", "Row", "accelerate", "restore"]
