"""The probes against the real kernel, and tools that are run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.errors import CommandFailed, NotConverged
from testbed.kernel.capabilities import CAPABILITIES, missing
from testbed.kernel.fitness import veth_round_trip
from testbed.kernel.probe import PROBES, probe
from testbed.kernel.run import run

ROOT = Path(__file__).parents[2]


@pytest.mark.needs("ip", "nf_tables", "iptables", "ipset")
@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("veth", "ip link add x1 type veth peer name x2"),
        ("bridge", "ip link add x1 type bridge"),
        ("vxlan", "ip link add x1 type vxlan id 1 dstport 4789"),
        ("ipip", "ip link add x1 type ipip remote 192.0.2.1"),
        ("dummy", "ip link add x1 type dummy"),
        ("vrf", "ip link add x1 type vrf table 10"),
        ("wireguard", "ip link add x1 type wireguard"),
        ("ifb", "ip link add x1 type ifb"),
        ("tun", "ip tuntap add x1 mode tun"),
        ("htb", "tc qdisc add dev lo root htb"),
        ("tbf", "tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1ms"),
        ("netem", "tc qdisc add dev lo root netem delay 1ms"),
        ("fq_codel", "tc qdisc add dev lo root fq_codel"),
        ("ingress", "tc qdisc add dev lo ingress"),
        ("clsact", "tc qdisc add dev lo clsact"),
        ("nf_tables", "nft add table ip x"),
        ("iptables", "iptables -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE"),
        ("ipset", "ipset create x hash:ip"),
    ],
)
def test_a_probe_says_what_the_tool_finds(name: str, argv: str) -> None:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", *argv.split()],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE": "/dev/null"},
    )
    assert (probe([name])[name] == "") == (done.returncode == 0), done.stderr


def test_every_probe_answers_in_one_child() -> None:
    answers = probe(PROBES)
    assert set(answers) == set(PROBES)


def test_only_what_is_asked_for_is_probed() -> None:
    assert set(probe(["veth", "bridge"])) == {"veth", "bridge"}
    assert probe([]) == {}


def test_doctor_reports_every_capability_and_limit() -> None:
    command = [sys.executable, "-m", "testbed.cli.main", "doctor", "-o", "json"]
    report = json.loads(run(command).stdout)
    lacking = {lack.name for lack in missing(CAPABILITIES)}
    findings = {each["name"]: each for each in report["findings"]}
    assert set(CAPABILITIES) < set(findings)
    assert {name for name in CAPABILITIES if not findings[name]["has"]} == lacking
    assert all(each["has"] or each["fix"] for each in findings.values())
    assert {"processors", "ordinary users", "wake-up delay", "veth round trip"} < set(findings)
    assert "(ip " in findings["ip"]["purpose"]
    assert report["start_seconds"] > 0


@pytest.mark.needs("veth", "ip")
def test_a_veth_pair_s_round_trip_is_measured() -> None:
    spread = veth_round_trip()
    assert 1e-7 < spread.median <= spread.p99


def test_run_hands_input_over_and_output_back() -> None:
    result = run(["cat"], stdin="some words")
    assert (result.stdout, result.stderr) == ("some words", "")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["sh", "-c", "echo sorry >&2; exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_run_raises_what_a_shell_would_say(argv: list[str], code: int) -> None:
    with pytest.raises(CommandFailed) as raised:
        run(argv)
    assert raised.value.returncode == code
    assert raised.value.argv == tuple(argv)
    assert "sorry" in raised.value.stderr or code != 7


def test_run_ends_what_takes_longer_than_its_deadline() -> None:
    with pytest.raises(NotConverged):
        run(["sleep", "60"], deadline=0.1)


def test_doctor_judges_the_machine_for_a_spec() -> None:
    """A delay needs netem: exit code 3 where the kernel has none, and the plain spec is fine either way."""
    spec = str(ROOT / "topologies/three-nodes.yaml")
    assert doctor(spec) == (0, f"{spec}: fits this machine.")
    delayed = (0, f"{spec}: fits this machine.")
    if missing(["netem"]):
        delayed = (3, f"{spec}: does not fit this machine, which lacks netem.")
    assert doctor(spec, "--set", "spec.topology.link.delay=1ms") == delayed
    assert doctor("no-such-file.yaml") == (2, "")


@pytest.mark.parametrize(
    "outside",
    [
        "echo 0 >/proc/sys/user/max_user_namespaces",
        "mount -o remount,bind,ro /sys",
        "mount -t tmpfs x /proc/irq",
    ],
    ids=["no more namespaces", "read-only /sys of a container", "masked /proc of a container"],
)
def test_where_a_sandbox_is_refused_nothing_is_said_to_be_there(outside: str) -> None:
    """In a user namespace as given, without the rights its root would have."""
    program = (
        f"{outside};"
        'exec setpriv --inh-caps=-all --bounding-set=-all "$0" -m testbed.cli.main doctor "$1" -o json'
    )
    spec = str(ROOT / "topologies/one-node.yaml")
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", program, sys.executable, spec]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert not any(findings[name]["has"] for name in PROBES)
    assert "sudo" in findings["userns"]["fix"]
    assert findings["mininet"]["has"]


def doctor(*arguments: str) -> tuple[int, str]:
    """The exit code, and the last line of what is printed."""
    command = [sys.executable, "-m", "testbed.cli.main", "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout.splitlines() or [""])[-1]
