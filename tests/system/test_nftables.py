"""Proxy mode nftables on the real kernel: what is loaded is what the real kube-proxy's nft listed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sandboxed import in_sandbox
from scenes import GOLDEN, Scene, scenes, steps

from testbed.cluster.reconcile import diff
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.errors import CommandFailed
from testbed.kernel import netns, readback
from testbed.kernel.apply import RealKernel
from testbed.kernel.nftables import Nftables, listing, load
from testbed.kernel.run import run
from testbed.proxy.nftables import Nftables as Proxier
from testbed.rules.nft import fragment, in_bulk, parse_ruleset, script
from testbed.state import NODE, NetnsState, NftChain, NftElement, NftSet, NftTable, NodeState

pytestmark = pytest.mark.needs("nf_tables")

NFT_PARTS = ("nft_tables", "nft_chains", "nft_sets", "nft_elements")


def tables(state: NetnsState) -> NetnsState:
    return NetnsState(**{part: getattr(state, part) for part in NFT_PARTS})


def listed() -> str:
    return run(["nft", "-j", "list", "ruleset"]).stdout


def differences(ours: str, recorded: Path, tmp_path: Path) -> str:
    """What the recording's own comparison says, "" where it finds nothing.

    nft 1.0.6, which recorded, says nothing in JSON of the comments of tables and chains, nor that a set is
    dynamic; later ones do.
    """
    objects = msgspec.json.decode(ours)
    for each in objects["nftables"]:
        for kind in ("table", "chain"):
            each.get(kind, {}).pop("comment", None)
        if flags := each.get("set", {}).get("flags"):
            each["set"]["flags"] = [flag for flag in flags if flag != "dynamic"]
    (tmp_path / "ours.json").write_bytes(msgspec.json.encode(objects))
    argv = [sys.executable, str(GOLDEN / "compare.py"), "nft", str(tmp_path / "ours.json"), str(recorded)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


def in_new_netns(function: Any) -> Any:
    home = netns.current()
    held = netns.enter_new()
    try:
        return function()
    finally:
        netns.enter(home)
        os.close(held)
        os.close(home)


def test_every_scene_reads_back_as_recorded(tmp_path: Path) -> None:
    def inside() -> list[str]:
        return [in_new_netns(lambda scene=scene: loaded(scene)) for scene in scenes()]

    def loaded(scene: Scene) -> str:
        load(script(Proxier().compile(scene.snapshot, scene.node)))
        return listed()

    answers = in_sandbox(inside, tmp_path / "run")
    found = {
        scene.name: differences(ours, scene.path("nftables.json"), tmp_path)
        for scene, ours in zip(scenes(), answers, strict=True)
    }
    assert {name: said for name, said in found.items() if said} == {}


def test_every_step_of_changes_reads_back_as_recorded(tmp_path: Path) -> None:
    """Object by object, a sync at least a second after the one before it, as kube-proxy spaces them."""

    def inside() -> list[str]:
        now, old, proxier, answers = 0.0, NetnsState(), Proxier(), []
        nftables = Nftables(lambda: now)
        for scene, seen in steps():
            for snapshot in (each for each in seen if scene.node.name in each.node):
                now += 1.1
                new = tables(proxier.compile(snapshot, scene.node))
                add, remove = change(old, new)
                nftables.change(NODE, add, remove)
                old = new
            answers.append(listed())
        return answers

    answers = in_sandbox(inside, tmp_path / "run")
    found = {
        scene.name: differences(ours, scene.path("nftables.json"), tmp_path)
        for (scene, _), ours in zip(steps(), answers, strict=True)
    }
    assert {name: said for name, said in found.items() if said} == {}


def change(old: NetnsState, new: NetnsState) -> tuple[NetnsState, NetnsState]:
    for each in diff(NodeState(old), NodeState(new)):
        return each.add, each.remove  # type: ignore[union-attr]
    return NetnsState(), NetnsState()


# --- kinds of change ----------------------------------------------------------------------------------

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16", "fd00:10:244::/56"), (), (), ())
NODE_1 = Node("node-1", ("192.168.100.11", "fd00:192::b"), ("10.244.1.0/24",))


def service(name: str, **more: Any) -> Service:
    number = int(name.rpartition("-")[2])
    return Service(
        "default",
        name,
        cluster_ips=(f"10.96.{number // 250}.{number % 250 + 1}", f"fd00:96::{number + 1:x}"),
        ports=(ServicePort(80, "http", node_port=30000 + number),),
        **more,
    )


def slices(name: str, count: int) -> tuple[EndpointSlice, ...]:
    number = int(name.rpartition("-")[2])
    return tuple(
        EndpointSlice(
            "default",
            f"{name}-{kind}",
            name,
            kind,
            (EndpointPort(8080, "http"),),
            tuple(
                Endpoint(
                    (f"{prefix}{number * 10 + n + 1:x}" if kind == "IPv6" else f"{prefix}{n + 1}",),
                    node="node-1" if n == 0 else "node-2",
                )
                for n in range(count)
            ),
        )
        for kind, prefix in (("IPv4", f"10.244.{number % 200 + 1}."), ("IPv6", "fd00:10:244::"))
    )


def snapshot(services: dict[str, tuple[Service, int]], cidrs: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(
        FACTS,
        (NODE_1,),
        services={("default", name): each for name, (each, _) in services.items()},
        slices={("default", name): slices(name, count) for name, (_, count) in services.items()},
        service_cidrs=cidrs,
    )


LOAD_BALANCER = {"type": "LoadBalancer", "vips": ("203.0.113.7", "2001:db8::7")}
WAYS: list[Snapshot] = [
    snapshot({}),
    snapshot({"web-1": (service("web-1"), 3), "web-2": (service("web-2", affinity_seconds=10800), 2)}),
    snapshot(
        {
            "web-1": (service("web-1", affinity_seconds=60), 2),
            "web-2": (service("web-2", affinity_seconds=90), 2),
        }
    ),
    snapshot(
        {
            "web-1": (
                service("web-1", **LOAD_BALANCER, source_ranges=("192.168.0.0/16", "198.51.100.0/24")),
                2,
            ),
            "web-2": (service("web-2", external_local=True, internal_local=True), 0),
        },
        ("10.96.0.0/12", "fd00:96::/112"),
    ),
    snapshot(
        {"web-1": (service("web-1", **LOAD_BALANCER, source_ranges=("198.51.100.9/32", "2001:db8::/64")), 1)},
        ("10.96.0.0/12", "10.97.0.0/16", "172.30.0.0/16"),
    ),
]


def test_any_state_becomes_any_other_and_is_read_back(tmp_path: Path) -> None:
    """Each of these after each other, on one kernel: what is there is what was wanted."""

    def inside() -> list[str]:
        wrong, proxier, old, now = [], Proxier(), NetnsState(), 0.0
        nftables = Nftables(lambda: now)
        for first in range(len(WAYS)):
            for second in range(len(WAYS)):
                for which in (first, second):
                    now += 2
                    new = tables(proxier.compile(WAYS[which], NODE_1))
                    nftables.change(NODE, *change(old, new))
                    now += 2
                    nftables.change(NODE, NetnsState(), NetnsState())
                    old = new
                    if parse_ruleset(listing()) != new:
                        wrong.append(f"{first} → {second}, {which}: {told(parse_ruleset(listing()), new)}")
        return wrong

    assert in_sandbox(inside, tmp_path / "run") == []


def told(found: NetnsState, wanted: NetnsState) -> str:
    return str(
        {
            part: [
                (key, getattr(found, part).get(key), getattr(wanted, part).get(key))
                for key in getattr(found, part).keys() | getattr(wanted, part).keys()
                if getattr(found, part).get(key) != getattr(wanted, part).get(key)
            ][:3]
            for part in NFT_PARTS
        }
    )


def test_many_services_written_without_nft_read_back_as_with_it(tmp_path: Path) -> None:
    many = {f"web-{n}": (service(f"web-{n}"), 3) for n in range(400)}

    def inside() -> list[bool]:
        wanted = tables(Proxier().compile(snapshot(many), NODE_1))
        Nftables().change(NODE, wanted, NetnsState())
        fast = listed()

        def slowly() -> str:
            # In pieces: nft sends each input at once, and an ordinary user's sockets do not take the whole.
            for part in in_bulk(wanted, NetnsState(), (), 100, 500):
                load(script(part))
            return listed()

        there = parse_ruleset(listing()) == wanted
        slow = in_new_netns(slowly)
        return [there, bare(fast) == bare(slow)]

    assert in_sandbox(inside, tmp_path / "run") == [True, True]


def bare(text: str) -> list[str]:
    """The objects of a JSON listing, without the numbers the kernel gives them, in order of their text."""
    objects = msgspec.json.decode(text)["nftables"]
    for each in objects:
        for body in each.values():
            body.pop("handle", None)
            body["elem"] = sorted(map(str, body.get("elem", [])))
    return sorted(map(str, objects))


def test_flushed_tables_come_back_with_the_next_change(tmp_path: Path) -> None:
    def inside() -> bool:
        before = tables(Proxier().compile(WAYS[1], NODE_1))
        after = tables(Proxier().compile(WAYS[3], NODE_1))
        kernel = RealKernel()
        kernel.change(NODE, before, NetnsState())
        run(["nft", "flush", "ruleset"])
        failures = kernel.change(NODE, *change(before, after))
        same = tables(readback.read()) == after
        kernel.close()
        return same and not failures

    assert in_sandbox(inside, tmp_path / "run") is True


def test_a_change_leaves_the_counters_of_others_alone(tmp_path: Path) -> None:
    """A rule's handle stays as long as nobody writes the rule again."""
    services = {f"web-{n}": (service(f"web-{n}"), 3) for n in range(5)}

    def handles() -> dict[str, int]:
        objects = msgspec.json.decode(listed())["nftables"]
        rules = [each["rule"] for each in objects if "rule" in each]
        return {rule["chain"] + str(n): rule["handle"] for n, rule in enumerate(rules)}

    def inside() -> list[str]:
        proxier, nftables = Proxier(), Nftables()
        old = tables(proxier.compile(snapshot(services), NODE_1))
        nftables.change(NODE, old, NetnsState())
        before = handles()
        fewer = {**services, "web-2": (services["web-2"][0], 2)}
        new = tables(proxier.compile(snapshot(fewer), NODE_1))
        nftables.change(NODE, *change(old, new))
        after = handles()
        return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))

    changed = in_sandbox(inside, tmp_path / "run")
    assert changed
    assert {name.partition("/")[2].partition("/")[0] for name in changed} == {"web-2"}


def test_ranges_that_hold_each_other_are_loaded(tmp_path: Path) -> None:
    """The node's own range makes its load balancer's addresses a source, which a range may hold already."""
    vip = replace(
        service("web-1", **LOAD_BALANCER),
        source_ranges=(
            *("192.168.0.0/16", "192.168.100.0/24", "203.0.113.0/24"),
            *("10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"),
        ),
    )

    def inside() -> bool:
        wanted = tables(Proxier().compile(snapshot({"web-1": (vip, 1)}), NODE_1))
        load(script(wanted))
        return parse_ruleset(listing()) == wanted

    assert in_sandbox(inside, tmp_path / "run") is True


def test_what_nft_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Also the tables of many Services, which are written in pieces when they are new."""
    many = {f"web-{n}": (service(f"web-{n}"), 2) for n in range(300)}

    def inside() -> list[object]:
        nftables = Nftables()
        wanted = tables(Proxier().compile(snapshot(many), NODE_1))
        nftables.change(NODE, wanted, NetnsState())
        bad = fragment(elements=[NftElement("ip", "kube-proxy", "cluster-ips", "no address")])
        try:
            nftables.change(NODE, bad, NetnsState())
        except CommandFailed as error:
            return ["no address" in str(error), parse_ruleset(listing()) == wanted]
        return ["nothing was refused"]

    assert in_sandbox(inside, tmp_path / "run") == [True, True]


def test_elements_written_without_nft_read_back_as_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses of both families, alone and with protocol and port, and jumps; added and removed."""

    def things(family: Any, kind: str, keys: tuple[str, ...]) -> NetnsState:
        ports = tuple(f"{key} . {proto} . {80 + n}" for n, key in enumerate(keys) for proto in ("tcp", "udp"))
        return fragment(
            tables=[NftTable(family, "t")],
            chains=[NftChain(family, "t", f"pod-{n}", ()) for n in range(3)],
            sets=[
                NftSet(family, "t", "plain", kind),
                NftSet(family, "t", "ports", f"{kind} . inet_proto . inet_service"),
                NftSet(family, "t", "pods", kind, "verdict"),
            ],
            elements=[
                *(NftElement(family, "t", "plain", key) for key in keys),
                *(NftElement(family, "t", "ports", key) for key in ports),
                *(
                    NftElement(family, "t", "pods", key, f"{'goto' if n % 2 else 'jump'} pod-{n % 3}")
                    for n, key in enumerate(keys)
                ),
            ],
        )

    def both(*hosts: int) -> NetnsState:
        four = things("ip", "ipv4_addr", tuple(f"10.244.1.{host}" for host in hosts))
        six = things("ip6", "ipv6_addr", tuple(f"fd00:244::{host:x}" for host in hosts))
        return NetnsState(**{part: getattr(four, part) | getattr(six, part) for part in NFT_PARTS})

    def inside() -> list[str]:
        nftables, old, wrong = Nftables(), NetnsState(), []
        for hosts in ((), (1, 2, 3), (3, 4), (2, 1), ()):
            new = both(*hosts)
            nftables.change(NODE, *change(old, new))
            if old != NetnsState():
                monkeypatch.setattr("testbed.kernel.nftables.load", refuse)
            if parse_ruleset(listing()) != new:
                wrong.append(f"{hosts}: {told(parse_ruleset(listing()), new)}")
            old = new
        return wrong

    def refuse(text: str) -> None:
        assert text == "", "nft was asked"

    assert in_sandbox(inside, tmp_path / "run") == []


def test_elements_that_the_kernel_refuses_are_left_to_nft(tmp_path: Path) -> None:
    """Somebody flushed the set: the difference fails, and the tables are made anew."""
    wanted = fragment(
        tables=[NftTable("ip", "t")],
        sets=[NftSet("ip", "t", "plain", "ipv4_addr")],
        elements=[NftElement("ip", "t", "plain", f"10.0.0.{n}") for n in (1, 2)],
    )
    one = replace_elements(wanted, lambda element: element.key == "10.0.0.1")

    def inside() -> bool:
        nftables = Nftables()
        nftables.change(NODE, wanted, NetnsState())
        run(["nft", "flush", "set", "ip", "t", "plain"])
        nftables.change(NODE, *change(wanted, one))
        return parse_ruleset(listing()) == one

    assert in_sandbox(inside, tmp_path / "run")


def replace_elements(state: NetnsState, keep: Any) -> NetnsState:
    elements = {key: each for key, each in state.nft_elements.items() if keep(each)}
    return msgspec.structs.replace(state, nft_elements=elements)
