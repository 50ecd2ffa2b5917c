"""500 questions a second from several pods while names change. Prints the figures; exit 1 if a bar is missed.

    python benchmarks/dns.py [--seconds 20] [--rate 500] [-o json]

200 Services with 1,000 endpoints, at first quiet. Then their addresses change 20 times a second: endpoints of
Services and of headless ones move to other addresses (A and PTR). Then, once a second, what a DNS server
learns only when it starts: a port of a Service (SRV), an ExternalName's target (CNAME), a namespace (TXT).
Bars: changes of addresses are answered within 1 s, the others within 4 s, and no question is ever lost.

A change counts as answered when a pod that asks for it all the time, at every DNS server, sees it. A question
that gets no answer in 5 s, as long as a resolver waits, or SERVFAIL or REFUSED, is lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed import Cluster
from testbed.quantiles import quantile

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {name: dns-bench}
spec:
  nodes: {count: 3}
  external: [{name: dns, address: 203.0.113.53, dns: {zone: {t0.example.com: 203.0.113.80}}}]
"""
SERVICES, ENDPOINTS, ASKERS = 200, 5, 5
ADDRESSES_WITHIN, RESTARTS_WITHIN = 1.0, 4.0
"""Bars, seconds."""

ASK = r"""
import json, random, select, socket, sys, time
server, rate, seconds, names = json.load(sys.stdin)
sys.path.insert(0, %r)
from testbed.apps.wire import dns
begun, sent, answered, bad, waiting, times = time.monotonic(), 0, 0, {}, {}, []
socks, poller = {}, select.poll()
def renew():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((server, 53)); sock.setblocking(False)
    socks[sock.fileno()] = sock; poller.register(sock, select.POLLIN)
    return sock
def take(wait):
    global answered
    for fd, _ in poller.poll(wait * 1000):
        while True:
            try: data = socks[fd].recv(4096)
            except BlockingIOError: break
            except ConnectionRefusedError: bad["refused"] = bad.get("refused", 0) + 1; break
            message = dns.parse(data)
            asked = waiting.pop((fd, message.number), None)
            if asked is None: continue
            times.append(time.monotonic() - asked); answered += 1
            if message.rcode not in ("NOERROR", "NXDOMAIN"):
                bad[message.rcode] = bad.get(message.rcode, 0) + 1
sock = renew()
while (now := time.monotonic()) < begun + seconds:
    if sent <= (now - begun) * rate:
        if sent %% 50 == 49: sock = renew()
        name, kind = random.choice(names)
        waiting[sock.fileno(), sent & 0xffff] = now
        sock.send(dns.question(sent & 0xffff, name, kind)); sent += 1
    else: take(max(0, begun + sent / rate - now))
end = time.monotonic() + 5
while waiting and time.monotonic() < end: take(0.1)
times.sort()
print(json.dumps({"sent": sent, "answered": answered, "lost": len(waiting), "bad": bad,
    "p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)], "max": times[-1]}))
"""
"""Asks at a rate, from a new port every 50 questions, as resolvers do."""

WATCH = r"""
import json, socket, sys, time
sys.path.insert(0, %r)
from testbed.apps.wire import dns
servers = json.loads(sys.stdin.readline())
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in servers]
for sock, server in zip(socks, servers): sock.connect((server, 53)); sock.settimeout(5)
number, pending = 0, []
import select
while True:
    if select.select([sys.stdin], [], [], 0.005 if pending else None)[0]:
        line = sys.stdin.readline()
        if not line: break
        pending.append((*json.loads(line), set()))
    for one in list(pending):
        key, name, kind, wanted, written, seen = one
        for place, sock in enumerate(socks):
            if place in seen: continue
            number = (number + 1) & 0xffff
            try:
                sock.send(dns.question(number, name, kind)); message = dns.parse(sock.recv(4096))
            except OSError: continue
            data = [record.data for record in message.answers] or [message.rcode]
            if any(wanted in one for one in data): seen.add(place)
        if len(seen) == len(socks) or time.time() - written > 30:
            pending.remove(one)
            print(json.dumps([key, time.time() - written, len(seen) == len(socks)]), flush=True)
"""
"""Asks every server for each change it is told of until all have it; prints how long after it was written."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each of the two parts takes")
    parser.add_argument("--rate", type=float, default=500.0, help="questions a second, of all pods together")
    parser.add_argument("-o", "--output", choices=("json",))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cluster.yaml")
        spec.write_text(SPEC)
        with Cluster.up(spec, name=f"dns-bench-{os.getpid()}") as cluster:
            bench = Bench(cluster, args.rate, args.seconds)
            bench.prepare()
            parts = {
                "quiet": bench.part(iter(()), 1.0),
                "addresses": bench.part(bench.address_changes(), 20.0),
                "restarts": bench.part(bench.restart_changes(), 1.0),
            }
    bars = {"quiet": 0.0, "addresses": ADDRESSES_WITHIN, "restarts": RESTARTS_WITHIN}
    for name, part in parts.items():
        part["bar"] = bars[name]
    if args.output:
        print(json.dumps(parts, indent=2))
    else:
        show(parts)
    return 0 if all(met(part) for part in parts.values()) else 1


def met(part: dict[str, Any]) -> bool:
    """Whether nothing was lost and every change was answered in time."""
    late = part["changes"] and part["seen_max"] > part["bar"]
    return not (part["lost"] or part["bad"] or part["unseen"] or late)


def show(parts: dict[str, dict[str, Any]]) -> None:
    """Print the figures."""
    for name, part in parts.items():
        seen = [f"{part[f'seen_{which}']:.3f} s ({which})" for which in QUANTILES]
        told = [f"{part[f'told_{which}']:.3f} s ({which})" for which in QUANTILES]
        bad = ", ".join(f"{count} {what}" for what, count in part["bad"].items()) or "none"
        print(f"{name}: {part['changes']} changes, {part['unseen']} never seen; bar {part['bar']:g} s")
        if part["changes"]:
            print(f"  seen by every server after {', '.join(seen)}")
            print(f"  DNS programming latency {', '.join(told)}")
        print(f"  {part['sent']} questions at {part['rate']:.0f}/s, {part['lost']} lost, bad answers: {bad}")
        print(f"  answered after {part['p50'] * 1e3:.2f} ms (p50), {part['p99'] * 1e3:.1f} ms (p99)")
        print(f"  {'ok' if met(part) else 'MISSED'}")


Change = tuple[Callable[[], object], str, str, str]
"""What to write; then the name, type and part of the answer by which it is seen."""


class Bench:
    """A cluster with names, and loads on it."""

    def __init__(self, cluster: Cluster, rate: float, seconds: float) -> None:
        self.cluster, self.rate, self.seconds = cluster, rate, seconds
        self.client = cluster.client
        self.names: list[tuple[str, str]] = []

    # --- objects ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Services, slices and pods, all in force."""
        objects: list[dict[str, Any]] = []
        for number in range(SERVICES):
            headless = {"clusterIP": "None"} if number % 2 else {}
            ports = [] if number % 2 else [{"name": "http", "port": 80}]
            objects += [service(number, ports=ports, **headless), endpoints(number, addresses(number))]
            self.names.append((f"s{number}.default.svc.cluster.local", "A"))
            if not number % 2:
                self.names.append((f"_http._tcp.s{number}.default.svc.cluster.local", "SRV"))
            self.names += [(reverse(address), "PTR") for address in addresses(number)]
        objects += [pod(f"asker-{number}") for number in range(ASKERS)] + [pod("watcher")]
        objects += [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "alias", "namespace": "default"},
                "spec": {"type": "ExternalName", "externalName": "t0.example.com"},
            }
        ]
        self.names.append(("alias.default.svc.cluster.local", "CNAME"))
        self.client.post("/apis/testbed/v1/manifests", {"objects": objects})
        self.cluster.wait(ready="")
        self.cluster.settle(60)
        time.sleep(3)  # for the last of the restarts

    def address_changes(self) -> Iterator[Change]:
        """Endpoints move: of headless Services the name's address, of others that of the endpoint's name."""
        for number, turn in ((n % SERVICES, n // SERVICES + 1) for n in itertools.count()):
            moved = addresses(number, turn)
            dashed = moved[0].replace(".", "-")
            yield (
                lambda number=number, moved=moved: self.put(endpoints(number, moved)),  # type: ignore[misc]
                *(
                    (f"s{number}.default.svc.cluster.local", "A", moved[0])
                    if number % 4 == 1
                    else (reverse(moved[0]), "PTR", f"{dashed}.s{number}.")
                    if number % 4 in (0, 3)
                    else (f"{dashed}.s{number}.default.svc.cluster.local", "A", moved[0])
                ),
            )

    def restart_changes(self) -> Iterator[Change]:
        """A port, an alias, a namespace, in turn."""
        for turn in itertools.count(1):
            match turn % 3:
                case 0:
                    number = turn % SERVICES // 2 * 2
                    port = {"name": "http", "port": 1000 + turn}
                    yield (
                        lambda number=number, port=port: self.patch(f"s{number}", {"ports": [port]}),  # type: ignore[misc]
                        *(f"_http._tcp.s{number}.default.svc.cluster.local", "SRV", f" {1000 + turn} "),
                    )
                case 1:
                    target = f"t{turn}.example.com"
                    yield (
                        lambda target=target: self.patch("alias", {"externalName": target}),  # type: ignore[misc]
                        *("alias.default.svc.cluster.local", "CNAME", target),
                    )
                case _:
                    name = f"new-{turn}"
                    yield (
                        lambda name=name: self.client.post(  # type: ignore[misc]
                            "/api/v1/namespaces",
                            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
                        ),
                        *(f"10-1-2-3.{name}.pod.cluster.local", "A", "10.1.2.3"),
                    )

    def put(self, obj: dict[str, Any]) -> None:
        """Replace an EndpointSlice."""
        path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/" + obj["metadata"]["name"]
        self.client.request("PUT", path, obj)

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        """Change a Service."""
        self.client.request(
            "PATCH",
            f"/api/v1/namespaces/default/services/{name}",
            {"spec": spec},
            content_type="application/merge-patch+json",
        )

    # --- a part -----------------------------------------------------------------------------------------

    def part(self, changes: Iterator[Change], per_second: float) -> dict[str, Any]:
        """Make changes at a rate while pods ask; what became of both."""
        version = max((int(item["version"]) for item in self.told("0")), default=0)
        answers: list[dict[str, Any]] = []
        source = str(Path(__file__).parents[1])
        request = json.dumps(["10.96.0.10", self.rate / ASKERS, self.seconds, self.names])

        def ask(name: str) -> None:
            done = self.cluster.pod(name).run([sys.executable, "-c", ASK % source], stdin=request)
            if done.code:
                raise SystemExit(f"{name}: {done.stderr}")
            answers.append(json.loads(done.stdout))

        threads = [threading.Thread(target=ask, args=(f"asker-{number}",)) for number in range(ASKERS)]
        lines = [json.dumps(self.dns_pods())]
        for thread in threads:
            thread.start()
        seen, written = self.watched(changes, per_second, lines, WATCH % source)
        for thread in threads:
            thread.join()
        told = [item["seconds"] for item in self.told(str(version))]
        bad: dict[str, int] = {}
        for one in answers:
            for what, count in one["bad"].items():
                bad[what] = bad.get(what, 0) + count
        times = [seconds for _, seconds, found in seen if found]
        sent = sum(one["sent"] for one in answers)
        return {
            "changes": written,
            "unseen": written - len(times),
            **{f"seen_{name}": quantile(sorted(times), share) for name, share in QUANTILES.items()},
            **{f"told_{name}": quantile(sorted(told), share) for name, share in QUANTILES.items()},
            "sent": sent,
            "rate": sent / self.seconds,
            "lost": sum(one["lost"] for one in answers),
            "bad": bad,
            "p50": max(one["p50"] for one in answers),
            "p99": max(one["p99"] for one in answers),
        }

    def watched(
        self, changes: Iterator[Change], per_second: float, lines: list[str], program: str
    ) -> tuple[list[list[Any]], int]:
        """Write the changes; a pod is told of each over a pipe and prints when it was seen."""
        reader, writer = os.pipe()
        with tempfile.TemporaryFile("w+") as found, os.fdopen(writer, "w") as tell:
            tell.write("".join(line + "\n" for line in lines))
            tell.flush()
            watcher = threading.Thread(
                target=run_with, args=(self.cluster, "watcher", program, reader, found.fileno())
            )
            watcher.start()
            begun, number = time.monotonic(), 0
            while time.monotonic() < begun + self.seconds:
                change = next(changes, None)
                if change is None:
                    time.sleep(self.seconds)
                    break
                write, name, kind, wanted = change
                at = time.time()
                write()
                tell.write(json.dumps([number, name, kind, wanted, at]) + "\n")
                tell.flush()
                number += 1
                time.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            time.sleep(5)
            tell.close()
            watcher.join()
            found.seek(0)
            return [json.loads(line) for line in found], number

    def told(self, since: str) -> list[dict[str, Any]]:
        """What the cluster itself says of DNS programming."""
        items: list[dict[str, Any]] = self.cluster.programming(since, of="names")["items"]
        return items

    def dns_pods(self) -> list[str]:
        """The addresses of the DNS servers."""
        pods = self.cluster.pods("k8s-app=kube-dns", "kube-system")
        return [pod["status"]["podIP"] for pod in pods]


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def run_with(cluster: Cluster, name: str, program: str, stdin: int, stdout: int) -> None:
    """Run a program in a pod with descriptors of ours; stdin is closed here."""
    from testbed.cluster.messages import Exec, Exited, Failed

    channel = cluster.client.channel(f"/api/v1/namespaces/default/pods/{name}/exec")
    channel.send(Exec(1, "", (sys.executable, "-c", program), {}), [stdin, stdout, sys.stderr.fileno()])
    os.close(stdin)
    while True:
        answer, _ = channel.receive()
        if isinstance(answer, Exited | Failed):
            channel.close()
            return


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    }


def service(number: int, **spec: Any) -> dict[str, Any]:
    metadata = {"name": f"s{number}", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def addresses(number: int, turn: int = 0) -> list[str]:
    """The addresses of a Service's endpoints: the first moves with each turn."""
    rest = [f"172.16.{number}.{place + 1}" for place in range(1, ENDPOINTS)]
    return [f"172.{17 + turn}.{number}.1", *rest]


def reverse(address: str) -> str:
    return ".".join(reversed(address.split("."))) + ".in-addr.arpa"


def endpoints(number: int, found: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"s{number}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [] if number % 2 else [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [address]} for address in found],
    }


if __name__ == "__main__":
    sys.exit(main())
