"""The prober against hand-made pods: what it says is what is there, reasons included."""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from probe_lab import TCP_PORT, UDP_PORT, Lab, in_child

from testbed.kernel.channel import MAX_FDS, Channel, socket_pair
from testbed.measure import messages, prober
from testbed.measure.ask import ask
from testbed.measure.messages import (
    Flow,
    FromProber,
    Language,
    Outcome,
    ProbeFailed,
    Protocol,
    Question,
    Reach,
    Reached,
    Reply,
)
from testbed.measure.reach import reach
from testbed.measure.sockets import Namespaces

PORTS: dict[Protocol, int] = {"tcp": TCP_PORT, "udp": UDP_PORT, "icmp": 0}


def mesh(lab: Lab, port: int) -> list[Flow]:
    names = list(lab.ips)
    return [Flow(a, lab.ips[b], port) for a in names for b in names if a != b]


def probe(lab: Lab, protocol: Protocol, flows: list[Flow], **options: Any) -> list[Outcome]:
    with Namespaces(lab.fds) as namespaces:
        return reach(protocol, flows, namespaces, **{"timeout": 1.0, "attempts": 2, **options})


def words(outcome: Outcome) -> tuple[str, str]:
    return outcome.verdict, outcome.reason


def test_every_flow_of_a_mesh_answers_over_every_protocol() -> None:
    def body() -> dict[str, Any]:
        lab = Lab(12)
        lab.serve()
        found = {}
        for protocol, port in PORTS.items():
            outcomes = probe(lab, protocol, mesh(lab, port))
            assert all(outcome.seconds is not None and outcome.seconds > 0 for outcome in outcomes)
            found[protocol] = Counter(map(words, outcomes))
        lab.close()
        return found

    assert in_child(body) == {protocol: {("ok", ""): 132} for protocol in PORTS}


def test_ipv6_mesh_answers_and_closed_ports_are_told() -> None:
    def body() -> dict[str, Any]:
        lab = Lab(4, nodes=1, ipv6=True)
        lab.serve(closed=["pod-3"])
        found = {
            protocol: Counter(map(words, probe(lab, protocol, mesh(lab, port))))
            for protocol, port in PORTS.items()
        }
        lab.close()
        return found

    assert in_child(body) == {
        "tcp": {("ok", ""): 9, ("refused", "reset"): 3},
        "udp": {("ok", ""): 9, ("refused", "port unreachable"): 3},
        "icmp": {("ok", ""): 12},
    }


def test_matrix_with_faults_equals_the_truth_reasons_included() -> None:
    """Of pods 0 … 9 (even ones on node 0, odd ones on node 1): pod 3 listens on nothing, the link of pod 4 is
    down at the node, pod 5's own is down, node 0 has a blackhole for pod 7 and prohibits pod 9."""

    def truth(protocol: Protocol, source: int, target: int) -> set[tuple[str, str]]:
        if source == 5:
            return {("unreachable", "network")}
        if 4 in (source, target) or target == 5:
            same_segment = source % 2 == target % 2 or source == 4
            # Across nodes the far node gives up on ARP after 3 s; a loaded machine may get there.
            late = set() if same_segment else {("timeout", "no answer")}
            return {("unreachable", "host")} | late
        if target == 7 and source % 2 == 0:
            return {("timeout", "no answer")}
        if target == 9 and source % 2 == 0:
            return {("unreachable", "prohibited")}
        if source == 7 and target % 2 == 0:
            return {("timeout", "no answer")}  # the answer has no way back
        if source == 9 and target % 2 == 0:
            return {("timeout", "no answer")}
        if target == 3 and protocol != "icmp":
            return {("refused", "reset" if protocol == "tcp" else "port unreachable")}
        return {("ok", "")}

    def body(protocol: Protocol) -> list[str]:
        lab = Lab(10)
        lab.serve(closed=["pod-3"])
        lab.inside("node-0", ["link set veth4 down"])
        lab.inside("pod-5", ["link set eth0 down"])
        lab.inside(
            "node-0",
            [f"route add blackhole {lab.ips['pod-7']}", f"route add prohibit {lab.ips['pod-9']}"],
        )
        number = {name: int(name.partition("-")[2]) for name in lab.ips}
        target = {address: number[name] for name, address in lab.ips.items()}
        wrong = []
        flows = mesh(lab, PORTS[protocol])
        for flow, outcome in zip(flows, probe(lab, protocol, flows), strict=True):
            right = truth(protocol, number[flow.source], target[flow.ip])
            if words(outcome) not in right:
                wrong.append(f"{flow.source} → {flow.ip}: {words(outcome)}, not {right}")
        lab.close()
        return wrong

    # A lab for each: a router tells one source of an unreachable route twice, then rests for seconds
    # (net.ipv4.route.error_burst and icmp_ratelimit take from the same bucket).
    assert {protocol: in_child(body, protocol) for protocol in PORTS} == {protocol: [] for protocol in PORTS}


def test_a_blackhole_of_the_sources_own_is_named() -> None:
    def body() -> list[tuple[str, str]]:
        lab = Lab(2)
        lab.inside("pod-0", ["route add blackhole 10.9.0.0/16", "route add prohibit 10.8.0.0/16"])
        outcomes = [
            *probe(lab, "tcp", [Flow("pod-0", "10.9.0.1", 80)]),
            *probe(lab, "icmp", [Flow("pod-0", "10.9.0.1", 0)]),
            *probe(lab, "udp", [Flow("pod-0", "10.8.0.1", 80)]),
        ]
        lab.close()
        return [words(outcome) for outcome in outcomes]

    assert in_child(body) == [
        ("unreachable", "blackhole"),
        ("unreachable", "blackhole"),
        ("unreachable", "prohibited"),
    ]


def test_the_reporter_of_an_icmp_error_is_named() -> None:
    def body(protocol: Protocol) -> str:
        lab = Lab(2)
        lab.inside("node-0", [f"route add prohibit {lab.ips['pod-1']}"])
        (outcome,) = probe(lab, protocol, [Flow("pod-0", lab.ips["pod-1"], PORTS[protocol])])
        lab.close()
        return outcome.reporter

    assert [in_child(body, protocol) for protocol in PORTS] == ["10.244.0.1"] * 3


def test_fewer_descriptors_than_flows_change_nothing() -> None:
    def body() -> Counter[tuple[str, str]]:
        lab = Lab(16)
        lab.serve()
        used = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, used + 40))
        found = Counter(map(words, probe(lab, "tcp", mesh(lab, TCP_PORT))))
        lab.close()
        return found

    assert in_child(body) == {("ok", ""): 240}


def test_silence_takes_all_attempts_and_an_answer_only_one() -> None:
    def body() -> list[tuple[str, int]]:
        lab = Lab(2)
        lab.serve()
        lab.inside("node-0", ["route add blackhole 10.9.0.1/32"])
        flows = [Flow("pod-0", "10.9.0.1", 80), Flow("pod-0", lab.ips["pod-1"], TCP_PORT)]
        outcomes = probe(lab, "tcp", flows, timeout=0.2, attempts=3)
        lab.close()
        return [(outcome.verdict, outcome.attempts) for outcome in outcomes]

    assert in_child(body) == [("timeout", 3), ("ok", 1)]


def converse(lab: Lab, requests: list[tuple[list[str], messages.Message]]) -> list[FromProber]:
    """Send requests, each with the netns it needs, to a prober of its own; its answers."""
    ours, theirs = socket_pair()
    child = os.fork()
    if child == 0:
        ours.close()
        prober.main(theirs, "prober")
        os._exit(0)
    theirs.close()
    channel: Channel[FromProber] = Channel(ours, FromProber)
    answers = []
    for names, request in requests:
        for start in range(0, len(names), MAX_FDS):
            batch = names[start : start + MAX_FDS]
            channel.send(messages.Namespaces(tuple(batch)), [lab.fds[name] for name in batch])
        channel.send(request)
        answers.append(channel.receive()[0])
    left = [os.readlink(entry) for entry in Path(f"/proc/{child}/fd").iterdir()]
    inherited = {os.readlink(f"/proc/self/fd/{fd}") for fd in lab.fds.values()}
    channel.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The child inherited the lab's own descriptors; what counts is that none was added.
    assert Counter(name for name in left if name in inherited) == Counter(inherited)
    return answers


def test_the_process_answers_requests_and_keeps_no_netns() -> None:
    def body() -> list[FromProber]:
        lab = Lab(3)
        lab.serve()
        flow = Flow("pod-0", lab.ips["pod-1"], TCP_PORT)
        answers = converse(
            lab,
            [
                (["pod-0"], Reach(1, "tcp", (flow,))),
                (["pod-0", "pod-2"], Reach(2, "udp", (Flow("pod-2", lab.ips["pod-0"], UDP_PORT),))),
                ([], Reach(3, "tcp", (flow,))),
                (["pod-0"], Reach(4, "icmp", (Flow("pod-0", lab.ips["pod-2"]),))),
            ],
        )
        lab.close()
        return answers

    answers = in_child(body)
    assert [answer.id for answer in answers] == [1, 2, 3, 4]
    assert isinstance(answers[2], ProbeFailed)  # its netns was not sent
    for answer in (answers[0], answers[1], answers[3]):
        assert isinstance(answer, Reached)
        assert [outcome.verdict for outcome in answer.outcomes] == ["ok"]
        before, after = answer.neighbours["ipv4"]
        assert after.limit >= before.entries > 0


def test_a_probe_leaves_this_process_in_its_own_netns() -> None:
    def body() -> bool:
        lab = Lab(2)
        before = os.stat("/proc/thread-self/ns/net").st_ino
        probe(lab, "tcp", [Flow("pod-0", lab.ips["pod-1"], 9)])
        after = os.stat("/proc/thread-self/ns/net").st_ino
        lab.close()
        return before == after

    assert in_child(body)


def test_lab_serves_what_the_tests_rely_on() -> None:
    """The lab's listeners answer a plain socket too, so that the prober is not judged by itself."""

    def body() -> bytes:
        lab = Lab(2)
        lab.serve()
        with Namespaces(lab.fds) as namespaces:
            namespaces.enter("pod-0")
            with socket.create_connection((lab.ips["pod-1"], TCP_PORT), timeout=5):
                pass
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.sendto(b"hello", (lab.ips["pod-1"], UDP_PORT))
                answer = sock.recv(100)
        lab.close()
        return answer

    assert in_child(body) == b"hello"


def test_conversations_are_held_from_one_port_or_many_and_told_apart() -> None:
    def body() -> dict[str, Any]:
        lab = Lab(3)
        lab.serve(closed=["pod-2"])
        found: dict[str, Any] = {}
        with Namespaces(lab.fds) as namespaces:

            def held(language: Language, target: str, **more: Any) -> list[Reply]:
                port = more.pop("port", PORTS["udp" if language == "udp" else "tcp"])
                question = Question("pod-0", lab.ips[target], port, more.pop("source_port", 0))
                options = {"text": "", "count": 1, "rate": 0.0, "at_once": 8, "timeout": 0.5}
                return ask(language, [question], namespaces, **{**options, **more})

            connected = held("tcp", "pod-1", count=500)
            found["connected"] = Counter((reply.verdict, reply.handshake is not None) for reply in connected)
            echoed = held("udp", "pod-1", text="hello", count=3, source_port=12345, at_once=1)
            found["echoed"] = [(reply.verdict, reply.answer) for reply in echoed]
            found["closed"] = [(reply.verdict, reply.reason) for reply in held("tcp", "pod-2")]
            found["mute"] = [(reply.verdict, reply.reason) for reply in held("http", "pod-1", text="/")]
            paced = held("tcp", "pod-1", count=20, rate=100.0)
            found["paced"] = (paced[-1].at - paced[0].at) / 1e9
        lab.close()
        return found

    found = in_child(body)
    assert found["connected"] == {("ok", True): 500}
    assert found["echoed"] == [("ok", "hello")] * 3
    assert found["closed"] == [("refused", "reset")]
    assert found["mute"] in ([("timeout", "silent")], [("error", "cut short")], [("reset", "reset")])
    assert found["paced"] >= 0.19  # the twentieth is not begun before its time
