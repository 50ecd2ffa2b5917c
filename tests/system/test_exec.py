"""``testbed exec`` and ``testbed capture`` as a person types them, on a running cluster."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.api.cluster import NotRun

ROOT = Path(__file__).parents[2]

CLIENT = "203.0.113.10"

SPEC = f"""
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: typed}}
spec:
  nodes: {{count: 2}}
  external:
  - {{name: client, address: {CLIENT}}}
"""

PODS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  containers:
  - {name: one, image: busybox, env: [{name: WHO, value: first}]}
  - {name: two, image: busybox, env: [{name: WHO, value: second}]}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = tmp_path_factory.mktemp("typed")
    (path / "spec.yaml").write_text(SPEC)
    (path / "pods.yaml").write_text(PODS)
    with Cluster.up(
        path / "spec.yaml", name=f"exec-{os.getpid()}", manifests=[path / "pods.yaml"]
    ) as running:
        yield running


def command(cluster: Cluster, *words: str) -> list[str]:
    name, *rest = words
    return [sys.executable, "-m", "testbed.cli.main", name, "-C", cluster.name, *rest]


def typed(cluster: Cluster, *words: str, stdin: str = "") -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    done = subprocess.run(
        command(cluster, *words), input=stdin, capture_output=True, text=True, cwd=ROOT, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shell", "--", "sh", "-c", "hostname; echo $WHO; exit 7"], (7, "shell\nfirst\n", "")),
        (["shell", "-c", "two", "--", "sh", "-c", "echo $WHO"], (0, "second\n", "")),
        (["pod/shell", "--", "sh", "-c", "echo no >&2"], (0, "", "no\n")),
        (["shell", "echo", "-n", "x"], (0, "x", "")),
        (["--node", "node-2", "--", "hostname"], (0, "node-2\n", "")),
        (["--host", "client", "--", "sh", "-c", "kill -9 $$"], (137, "", "")),
    ],
)
def test_exec_gives_output_and_exit_code(
    cluster: Cluster, words: list[str], expected: tuple[int, str, str]
) -> None:
    assert typed(cluster, "exec", *words) == expected


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["shell", "--", "no-such-program"], 127),
        (["shell", "--", "/etc/hosts"], 126),
        (["absent", "--", "true"], 2),
        (["shell", "-c", "three", "--", "true"], 2),
        (["--node", "node-9", "--", "true"], 2),
        (["--host", "nobody", "--", "true"], 2),
        (["shell"], 2),
    ],
)
def test_exec_says_what_it_cannot_run(cluster: Cluster, words: list[str], code: int) -> None:
    got, out, err = typed(cluster, "exec", *words)
    assert (got, out) == (code, "")
    assert len(err.splitlines()) == 1


def test_exec_passes_standard_input_only_where_asked(cluster: Cluster) -> None:
    assert typed(cluster, "exec", "-i", "shell", "--", "cat", stdin="typed\n") == (0, "typed\n", "")
    assert typed(cluster, "exec", "shell", "--", "cat", stdin="typed\n") == (0, "", "")


def test_exec_of_a_deployment_means_its_first_pod(cluster: Cluster) -> None:
    names = sorted(pod["metadata"]["name"] for pod in cluster.pods("app=web"))
    assert typed(cluster, "exec", "deploy/web", "--", "hostname") == (0, f"{names[0]}\n", "")


def test_exec_with_a_terminal_gives_one(cluster: Cluster) -> None:
    master, slave = pty.openpty()
    script = "test -t 0 && stty -echo && echo ready && read x && echo $x$x"
    argv = command(cluster, "exec", "-it", "shell", "--", "sh", "-c", script)
    with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT) as process:
        os.close(slave)
        read_until(master, b"ready")
        os.write(master, b"ab\r")
        read_until(master, b"abab")
    os.close(master)
    assert process.returncode == 0


def read_until(terminal: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], 20)[0], shown
        shown += os.read(terminal, 1000)


def test_interrupting_exec_interrupts_the_program(cluster: Cluster) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do read x || :; done"
    argv = command(cluster, "exec", "-i", "shell", "--", "sh", "-c", script)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout.read() == "caught\n"
    assert process.returncode == 3


def capturing(cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    """A capture that listens already."""
    process = subprocess.Popen(
        command(cluster, "capture", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening on ")
    return process


def ping(cluster: Cluster, address: str) -> None:
    assert cluster.pod("shell").run(["ping", "-c", "1", "-W", "5", address]).code == 0


def test_capture_shows_packets_with_interface_and_direction_until_the_count(cluster: Cluster) -> None:
    with capturing(cluster, "shell", "-c", "2", "icmp") as process:
        address: str = cluster.pods("app=web")[0]["status"]["podIP"]
        ping(cluster, address)
        out, err = process.communicate(timeout=20)
    request, reply = out.splitlines()
    assert f" eth0  Out IP {cluster_ip(cluster)} > {address}: ICMP echo request" in request
    assert f" eth0  In  IP {address} > {cluster_ip(cluster)}: ICMP echo reply" in reply
    assert (process.returncode, err.splitlines()[0]) == (0, "2 packets captured")


def cluster_ip(cluster: Cluster) -> str:
    pods = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.pods("")}
    return str(pods["shell"])


def test_capture_writes_a_file_of_ours_until_it_is_interrupted(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "cni0.pcapng"
    node = next(pod["spec"]["nodeName"] for pod in cluster.pods("") if pod["metadata"]["name"] == "shell")
    with capturing(cluster, "--node", node, "-i", "cni0", "-w", str(path)) as process:
        ping(cluster, CLIENT)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err.splitlines()[1] == "0 packets dropped by kernel"
    assert path.stat().st_uid == os.getuid()
    read = subprocess.run(["tcpdump", "-n", "-r", str(path)], capture_output=True, text=True, check=True)
    assert f"IP {cluster_ip(cluster)} > {CLIENT}: ICMP echo request" in read.stdout


def test_capture_on_an_interface_that_is_not_there_fails_with_its_own_reason(cluster: Cluster) -> None:
    assert typed(cluster, "capture", "shell", "-i", "eth7") == (
        2,
        "",
        "capture on eth7: no such interface: there are lo, eth0\n",
    )


@pytest.mark.parametrize("closed", [0, 1])
def test_exec_with_a_closed_standard_file_ends(cluster: Cluster, closed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "testbed.cli.main", "exec", "-C", cluster.name, "-i", "shell", "--", "cat"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(closed),
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("argv", [[], [""], ["true", "a\0b"]])
def test_a_command_that_can_be_none_is_refused_and_harms_nobody(cluster: Cluster, argv: list[str]) -> None:
    for place in (cluster.pod("shell"), cluster.node("node-1"), cluster.host("client")):
        with pytest.raises(NotRun) as refused:
            place.run(argv)
        assert refused.value.exit_code == 2
        assert place.run(["true"]).code == 0


def test_exec_on_a_node_whose_agent_dies_says_so(cluster: Cluster) -> None:
    """Last, as the node stays dead."""
    node = cluster.pods(selector="app=web")[0]["spec"]["nodeName"]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "testbed.cli.main", "exec", "-C", cluster.name),
            *("--node", node, "--", "sh", "-c", "echo $PPID; exec sleep 60"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        agent = running.stdout.readline().strip()
        other = "node-2" if node == "node-1" else "node-1"
        assert cluster.node(other).run(["kill", "-9", agent]).code == 0
        _, stderr = running.communicate(timeout=20)
    assert running.returncode == 4
    assert f"the agent of node {node} has ended" in stderr
    with pytest.raises(RequestFailed, match=f"the agent of node {node} does not answer"):
        cluster.node(node).run(["true"])
    cluster.settle(timeout=5)
