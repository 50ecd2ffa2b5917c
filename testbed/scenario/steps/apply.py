"""``apply`` and ``delete``: manifests in files beside the scenario, or written in it."""

from __future__ import annotations

from typing import Any

from testbed.errors import InputError
from testbed.scenario.model import Context, Step, step


@step("apply")
class Apply(Step, frozen=True, kw_only=True):
    """files: paths relative to the scenario; objects: manifests in place. Waits until the kernel has them."""

    files: tuple[str, ...] = ()
    objects: tuple[dict[str, Any], ...] = ()
    timeout: float = 60.0

    def run(self, context: Context) -> None:
        """Apply and wait until nothing is due."""
        if not self.files and not self.objects:
            raise InputError("apply: needs files or objects")
        context.note("applying", files=list(self.files), objects=len(self.objects))
        if self.files:
            context.cluster.apply(*(context.folder / name for name in self.files))
        if self.objects:
            context.cluster.client.post("/apis/testbed/v1/manifests", {"objects": list(self.objects)})
        context.cluster.settle(self.timeout)
        context.note("applied", files=list(self.files), objects=len(self.objects))


@step("delete")
class Delete(Step, frozen=True, kw_only=True):
    """files: paths relative to the scenario. Waits until the kernel has let go of them."""

    files: tuple[str, ...]
    timeout: float = 60.0

    def run(self, context: Context) -> None:
        """Delete and wait until nothing is due."""
        context.note("deleting", files=list(self.files))
        context.cluster.delete(*(context.folder / name for name in self.files))
        context.cluster.settle(self.timeout)
        context.note("deleted", files=list(self.files))
