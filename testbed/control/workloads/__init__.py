"""Workload controllers as pure functions: an owner and what it owns in, what to create and delete out.

One file per kind. Objects are plain Kubernetes dicts; nothing here reads a clock, a store or a random source
(names that end in five random letters are asked for by ``generateName``, as upstream does).
"""

from testbed.control.workloads.common import Outcome, is_active, is_ready, template_hash

__all__ = ["Outcome", "is_active", "is_ready", "template_hash"]
