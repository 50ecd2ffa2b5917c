"""``pod-kill``: a pod is gone from one moment to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from testbed.errors import TestbedError
from testbed.faults.model import Fault, fault
from testbed.faults.target import Aim, Target

if TYPE_CHECKING:
    from testbed.faults.hands import Hands


@fault("pod-kill")
class PodKill(Fault, frozen=True, kw_only=True):
    """The pod is deleted without any grace: its netns is gone, and whoever owns it makes another one.

    It is over when it has happened; there is nothing to heal.
    """

    aim: ClassVar[Aim] = "pod"

    def over(self) -> bool:
        """Nothing is left to heal."""
        return True

    async def inject(self, hands: Hands, target: Target) -> None:
        """As ``kubectl delete pod --force --grace-period=0``."""
        for pod in target.pods:
            hands.plane.store.delete("Pod", pod.namespace, pod.name, uid=pod.uid, grace=0)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The node has no such netns any more."""
        for pod in target.pods if on else ():
            try:
                await hands.read(pod.node, pod.uid)
            except TestbedError:
                continue
            return f"{pod.namespace}/{pod.name}: is still there"
        return ""
