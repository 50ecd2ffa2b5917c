"""An Open vSwitch of a node's own, with its datapath in user space: started, told its ports and flows, fed.

    python -m testbed.relays.ovs CONFIG.json

Its database and switch (``ovsdb-server``, ``ovs-vswitchd``) run beside CONFIG with nothing of the machine's
own Open vSwitch. Bridge ``datapath`` has the port to the pods' bridge and a tunnel port whose remote and VNI
are set by flows. Bridge ``br-phy`` has the node's own interface: what user space sends in tunnels goes out
there, and what comes for the tunnel's port comes in there; all else on the interface stays the kernel's,
addresses too. ``flows`` beside CONFIG, and the peers in it, are read anew when they change. Ends when one of
the two ends.

Sources: Open vSwitch 3.1 ``Documentation/howto/userspace-tunneling.rst``, ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from testbed.kernel import syscalls

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PHY = "br-phy"
STARTED_WITHIN = 10.0
LOOK = 0.1


class Switch:
    """One Open vSwitch. home: where its files are, and CONFIG's."""

    def __init__(self, path: Path) -> None:
        self._path, self._home = path, path.parent
        self._socket = f"unix:{self._home}/db.sock"
        self._programs: list[subprocess.Popen[bytes]] = []
        self._routes: dict[str, str] = {}
        self._seen: tuple[int, int] = (0, 0)

    def run(self) -> None:
        """Serve until a program of it ends. Raises OSError, CalledProcessError, TimeoutError."""
        config = json.loads(self._path.read_text())
        try:
            self._start()
            self._build(config)
            while all(program.poll() is None for program in self._programs):
                if (now := self._versions()) != self._seen:
                    self._feed(json.loads(self._path.read_text()))
                    self._seen = now
                time.sleep(LOOK)
            raise TimeoutError("a program of Open vSwitch ended, see its log")
        finally:
            for program in reversed(self._programs):
                program.terminate()
            for program in self._programs:
                program.wait()

    def _versions(self) -> tuple[int, int]:
        return self._path.stat().st_mtime_ns, (self._home / "flows").stat().st_mtime_ns

    def _start(self) -> None:
        database = self._home / "conf.db"
        database.unlink(missing_ok=True)
        self._do("ovsdb-tool", "create", str(database), SCHEMA)
        log = f"--log-file={self._home}/{{}}.log"
        self._spawn(
            "ovsdb-server",
            str(database),
            f"--remote=p{self._socket}",
            f"--unixctl={self._home}/ovsdb.ctl",
            log.format("ovsdb-server"),
        )
        self._await(self._home / "db.sock")
        self._vsctl("--no-wait", "init")
        self._spawn(
            "ovs-vswitchd",
            self._socket,
            "--disable-system",
            f"--unixctl={self._home}/vswitchd.ctl",
            log.format("ovs-vswitchd"),
        )
        self._await(self._home / "vswitchd.ctl")

    def _spawn(self, *argv: str) -> None:
        directories = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **dict.fromkeys(directories, str(self._home))}
        self._programs.append(subprocess.Popen(argv, env=env, cwd=self._home, preexec_fn=_end_with_parent))

    def _await(self, path: Path) -> None:
        deadline = time.monotonic() + STARTED_WITHIN
        while not path.exists():
            if time.monotonic() > deadline or any(program.poll() is not None for program in self._programs):
                raise TimeoutError(f"Open vSwitch does not start: no {path.name}")
            time.sleep(0.01)

    @staticmethod
    def _do(*argv: str, stdin: str = "") -> str:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _vsctl(self, *words: str) -> None:
        self._do("ovs-vsctl", f"--db={self._socket}", f"--timeout={STARTED_WITHIN:.0f}", *words)

    def _appctl(self, *words: str) -> str:
        return self._do("ovs-appctl", "-t", f"{self._home}/vswitchd.ctl", *words)

    def _build(self, config: dict[str, Any]) -> None:
        uplink, port, address = config["uplink"], config["port"], config["address"]
        mac = Path(f"/sys/class/net/{uplink}/address").read_text().strip()
        self._vsctl(
            *("add-br", PHY, "--", "set", "bridge", PHY, "datapath_type=netdev", "fail_mode=secure"),
            *(f"other-config:hwaddr={mac}", "--", "add-port", PHY, uplink),
            *("--", "set", "interface", uplink, "ofport_request=1"),
            *("--", "add-br", config["bridge"], "--", "set", "bridge", config["bridge"]),
            *("datapath_type=netdev", "fail_mode=secure", "--", "add-port", config["bridge"], port),
            *("--", "set", "interface", port, "ofport_request=1"),
            *(
                "--",
                "add-port",
                config["bridge"],
                config["tunnel"],
                "--",
                "set",
                "interface",
                config["tunnel"],
            ),
            *("type=vxlan", "ofport_request=2", "options:remote_ip=flow", "options:key=flow"),
            *(f"options:local_ip={address}", f"options:dst_port={config['udp']}", "options:df_default=true"),
        )
        for name in (PHY, config["bridge"]):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            self._do("ip", "link", "set", name, "up")
        # The tunnel ends where the bridge has the outer destination; the kernel's own routes stay.
        (link,) = json.loads(self._do("ip", "-json", "-4", "address", "show", uplink))
        (length,) = {each["prefixlen"] for each in link["addr_info"] if each["local"] == address}
        # A switch that was killed left its bridge, and the address on it.
        self._do("ip", "address", "replace", f"{address}/{length}", "dev", PHY, "noprefixroute")
        physical = [
            "in_port=LOCAL,actions=output:1",
            f"in_port=1,udp,tp_dst={config['udp']},actions=LOCAL",
            "in_port=1,arp,arp_op=2,actions=LOCAL",
        ]
        self._replace(PHY, "\n".join(physical))

    def _feed(self, config: dict[str, Any]) -> None:
        wanted = {peer: self._gateway(peer, config["uplink"]) for peer in config["peers"]}
        for peer in [peer for peer, via in self._routes.items() if wanted.get(peer) != via]:
            self._appctl("ovs/route/del", f"{peer}/32")
            del self._routes[peer]
        for peer, via in wanted.items():
            if peer not in self._routes:
                self._appctl("ovs/route/add", f"{peer}/32", PHY, *([via] if via else []))
                self._routes[peer] = via
        self._replace(config["bridge"], (self._home / "flows").read_text())

    def _gateway(self, peer: str, uplink: str) -> str:
        """The router by which the kernel reaches a peer; "" where it needs none."""
        (route,) = json.loads(self._do("ip", "-json", "route", "get", peer, "oif", uplink))
        return str(route.get("gateway", ""))

    def _replace(self, bridge: str, flows: str) -> None:
        target = f"unix:{self._home}/{bridge}.mgmt"
        self._do("ovs-ofctl", "-OOpenFlow13", "replace-flows", target, "-", stdin=flows + "\n")


def _end_with_parent() -> None:
    """One that outlived us would keep its database locked from the next one."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> int:
    """Run the switch of a configuration file until it is ended."""
    if len(argv) != 1:
        print("usage: python -m testbed.relays.ovs CONFIG.json", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    try:
        Switch(Path(argv[0])).run()
    except (OSError, TimeoutError) as error:
        print(f"ovs: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
