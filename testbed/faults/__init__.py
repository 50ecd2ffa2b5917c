"""Faults: what can be broken, how it is seen to be broken in the kernel, and how it is made whole again.

``model`` is what a fault is, ``target`` what it acts on, ``service`` holds those that are in force;
every other file is one fault or one family of them. ``docs/faults.md``.
"""

from testbed.faults.model import Fault, fault, faults

__all__ = ["Fault", "fault", "faults"]
