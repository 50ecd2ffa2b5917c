"""Labs: a start state, a text, and checks that say what was seen and expected but give no answer away.

A lab is a folder ``labs/NN-name`` with ``README.md`` (the text), ``cluster.yaml`` (the start state) and
``check.py``, whose ``CHECKS`` are functions that take the running cluster and return a ``Finding``, in the
order in which a student gets there. Solutions are elsewhere, in ``labs/teacher``.
"""

from testbed.labs.lab import Finding, Lab, find, known

__all__ = ["Finding", "Lab", "find", "known"]
