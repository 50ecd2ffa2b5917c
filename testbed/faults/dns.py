"""Cluster DNS that fails: ``dns-down``, ``dns-servfail``, ``dns-slow``; by default one replica of it.

The replica stays Ready and in the endpoints of kube-dns, so that clients go on being sent to it: port 53 of
its pod is turned, by nftables in the pod's own netns, before any other rule there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from testbed.control.snapshot import Pod
from testbed.faults.model import Fault, States, fault, on_pods
from testbed.faults.programs import FRONT_PORT, argv
from testbed.faults.target import Aim, Target
from testbed.state import NetnsState, NftChain, NftTable, PodState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

FAMILY: Literal["inet"] = "inet"
TABLE = "testbed-fault-dns"
OWN = 'iifname "lo" accept'
"""What the pod sends to itself goes on to the true server."""


def _chain(name: str, kind: Literal["filter", "nat"], hook: str, priority: str, *rules: str) -> NftChain:
    return NftChain(FAMILY, TABLE, name, rules, kind, hook, priority)


DROPPING = (
    _chain("questions", "filter", "prerouting", "raw - 10", OWN, "udp dport 53 drop", "tcp dport 53 drop"),
)
TURNING = (
    _chain(
        *("questions", "filter", "prerouting", "raw - 10"),
        *(OWN, f"udp dport 53 notrack udp dport set {FRONT_PORT}"),
    ),
    _chain("answers", "filter", "output", "raw - 10", f"udp sport {FRONT_PORT} notrack udp sport set 53"),
    _chain(
        *("connections", "nat", "prerouting", "dstnat - 10", OWN), f"tcp dport 53 redirect to :{FRONT_PORT}"
    ),
)


def with_chains(netns: NetnsState, chains: tuple[NftChain, ...]) -> NetnsState:
    """The netns with a table of these chains, all that one fault at a time has there."""
    return msgspec.structs.replace(
        netns,
        nft_tables={**netns.nft_tables, (FAMILY, TABLE): NftTable(FAMILY, TABLE)},
        nft_chains={**netns.nft_chains, **{(FAMILY, TABLE, chain.name): chain for chain in chains}},
    )


class _Dns(Fault, frozen=True, kw_only=True):
    """What is common: whom it acts on, and asking it."""

    aim: ClassVar[Aim] = "pod"
    needs: ClassVar[frozenset[str]] = frozenset({"nf_tables"})
    namespace: ClassVar[str] = "kube-system"
    selector: ClassVar[str] = "k8s-app=kube-dns"
    chains: ClassVar[tuple[NftChain, ...]] = TURNING

    def perturb(self, states: States, target: Target) -> States:
        """Port 53 leads elsewhere, or nowhere."""

        def change(pod: PodState) -> PodState:
            return msgspec.structs.replace(pod, netns=with_chains(pod.netns, self.chains))

        return on_pods(states, target, change)

    async def front(self, hands: Hands, target: Target, mode: str, delay: float = 0.0) -> None:
        """Have somebody answer in the server's place."""
        for pod in target.pods:
            words = argv("dns_front", mode, pod.ips[0], str(delay))
            hands.keep(target.fault, await hands.start_in(pod, words))

    async def lift(self, hands: Hands, target: Target) -> None:
        """Nobody answers in its place."""
        await hands.stopped(target.fault)

    def as_it_should(self, answer: str) -> bool:
        """Whether an answer to a question from the pod's node is what this fault is about."""
        raise NotImplementedError

    def patience(self) -> float:
        """Seconds that such an answer, or silence, is waited for."""
        return 1.0

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Each replica is asked from its node; healed, one that is gone meanwhile is not."""
        there = {pod.uid for pod in hands.plane.running()}
        for pod in (each for each in target.pods if on or each.uid in there):
            answer = await self._asked(hands, pod, self.patience() if on else 1.0)
            if self.as_it_should(answer) != on or not (on or answer.startswith("NOERROR")):
                return f"{pod.name}: answers {answer}"
        return ""

    @staticmethod
    async def _asked(hands: Hands, pod: Pod, patience: float) -> str:
        name = f"kubernetes.default.svc.{hands.plane.facts.cluster_domain}"
        return await hands.run(pod.node, argv("ask_dns", pod.ips[0], name, str(patience)))


@fault("dns-down")
class DnsDown(_Dns, frozen=True, kw_only=True):
    """A DNS replica answers nothing, though it is Ready: questions to it are lost without a word."""

    chains = DROPPING

    def patience(self) -> float:
        """Silence is seen soon."""
        return 0.5

    def as_it_should(self, answer: str) -> bool:
        """Silence."""
        return answer == "timeout"


@fault("dns-servfail")
class DnsServfail(_Dns, frozen=True, kw_only=True):
    """A DNS replica answers every question by SERVFAIL, as one does that reaches nobody itself."""

    async def inject(self, hands: Hands, target: Target) -> None:
        """Start what answers so."""
        await self.front(hands, target, "servfail")

    def as_it_should(self, answer: str) -> bool:
        """The code."""
        return answer.startswith("SERVFAIL")


@fault("dns-slow")
class DnsSlow(_Dns, frozen=True, kw_only=True):
    """A DNS replica answers every question truly, and ``delay`` seconds late."""

    delay: Annotated[float, msgspec.Meta(gt=0, le=30)] = 1.0

    async def inject(self, hands: Hands, target: Target) -> None:
        """Start what hands questions on."""
        await self.front(hands, target, "slow", self.delay)

    def patience(self) -> float:
        """With the time that it takes."""
        return self.delay + 2

    def as_it_should(self, answer: str) -> bool:
        """Late."""
        code, _, took = answer.partition(" ")
        return code == "NOERROR" and float(took) >= self.delay
