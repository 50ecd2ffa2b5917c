"""What a dataplane cannot do is said before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.api.offline import node_state
from testbed.api.start import start
from testbed.control import view
from testbed.dataplane import dataplanes, fitting
from testbed.errors import InputError
from testbed.spec.load import parse_spec

BOTH = '[10.244.0.0/16, "fd00:10:244::/56"]'


def spec(dataplane: str, pods: str = BOTH, mtu: int = 1500) -> str:
    return f"""
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: fitting}}
spec:
  nodes: {{count: 2}}
  topology: {{link: {{mtu: {mtu}}}}}
  network: {{podCIDR: {pods}, dataplane: {{{dataplane}}}}}
"""


def check(text: str) -> None:
    read = parse_spec(text)
    fitting.check(dataplanes.get(read.network.dataplane), view.facts(read))


@pytest.mark.parametrize(
    ("dataplane", "most"),
    [
        ("name: calico, vxlanMode: Always", 70),
        ("name: calico, vxlanMode: CrossSubnet", 70),
        ("name: calico, ipipMode: Always", 20),
        ("name: calico", 0),
        ("name: flannel", 70),
        ("name: flannel, backend: wireguard", 80),
        ("name: flannel, backend: host-gw", 0),
        ("name: bridge", 0),
    ],
)
def test_packets_of_ipv6_need_1280_bytes_beside_what_a_tunnel_adds(dataplane: str, most: int) -> None:
    check(spec(dataplane, mtu=1280 + most))
    if most:
        with pytest.raises(InputError, match=r"^spec\.topology\.link\.mtu: leaves pods 1279 bytes"):
            check(spec(dataplane, mtu=1279 + most))
    check(spec(f"{dataplane}, mtu: {1280 + most}"))
    with pytest.raises(
        InputError, match=r"^spec\.network\.dataplane\.mtu: .* 1279 bytes, and IPv6 needs 1280"
    ):
        check(spec(f"{dataplane}, mtu: {1279 + most}"))


@pytest.mark.parametrize("dataplane", ["name: calico, vxlanMode: Always", "name: flannel"])
def test_without_ipv6_a_device_needs_68_bytes(dataplane: str) -> None:
    check(spec(f"{dataplane}, mtu: 118", "10.244.0.0/16"))
    with pytest.raises(InputError, match="leaves pods 67 bytes, and IPv4 needs 68"):
        check(spec(f"{dataplane}, mtu: 117", "10.244.0.0/16"))


@pytest.mark.parametrize("name", [each for each in dataplanes if each not in ("weave", "calico")])
def test_what_is_left_to_itself_fits(name: str) -> None:
    check(spec(f"name: {name}"))


def test_a_pool_of_calico_is_at_least_a_block() -> None:
    check(spec("name: calico", "10.244.0.0/26"))
    check(spec("name: calico, blockSize: 28", "10.244.0.0/28"))
    with pytest.raises(InputError) as caught:
        check(spec("name: calico, blockSize: 26", "10.244.0.0/27"))
    assert str(caught.value) == (
        "spec.network.podCIDR: 10.244.0.0/27 is smaller than a block: "
        "blockSize is /26, and a pool has to be at least that"
    )
    with pytest.raises(InputError, match=r"fd00:10:244::/124 is smaller than a block: blockSizeV6 is /122"):
        check(spec("name: calico", '[10.244.0.0/16, "fd00:10:244::/124"]'))


def test_weave_has_one_range() -> None:
    check(spec("name: weave", "10.32.0.0/12"))
    with pytest.raises(InputError, match="dataplane weave has one range"):
        check(spec("name: weave"))


@pytest.mark.parametrize("backend", ["udp", "ipip"])
@pytest.mark.parametrize("pods", [BOTH, '"fd00:10:244::/56"'])
def test_backends_for_ipv4_alone_refuse_ipv6(backend: str, pods: str) -> None:
    check(spec(f"name: flannel, backend: {backend}", "10.244.0.0/16"))
    with pytest.raises(
        InputError, match=rf"^spec\.network\.dataplane\.backend: {backend} carries IPv4 alone"
    ):
        check(spec(f"name: flannel, backend: {backend}", pods))


def test_up_and_render_refuse(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(spec("name: flannel, backend: udp"))
    with pytest.raises(InputError, match="carries IPv4 alone"):
        start(file)
    with pytest.raises(InputError, match="carries IPv4 alone"):
        node_state(file, (), (), "node-1")


def test_up_and_render_refuse_what_the_fabrics_routers_make_useless() -> None:
    racks = Path(__file__).parents[2] / "topologies" / "racks.yaml"
    overrides = ["network.dataplane.name=calico", "network.dataplane.routeReflectors=[node-1]"]
    with pytest.raises(InputError, match="on racks nodes speak BGP with their leaf"):
        start(racks, overrides=overrides)
    with pytest.raises(InputError, match="on racks nodes speak BGP with their leaf"):
        node_state(racks, (), overrides, "node-1")
