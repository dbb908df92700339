"""Level `vm`: a container in a virtual machine of its own, whose PID 1 is stem."""

from nacre.isolation.microvm.machine import MicroVm

__all__ = ["MicroVm"]
