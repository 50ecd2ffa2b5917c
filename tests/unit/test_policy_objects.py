"""Cluster-wide policies as objects: what the API takes and refuses, and how it is read."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import ip_network
from typing import Any

import pytest

from testbed.control.policies import Block, Peer, Port, Rule, Selection, Selector, typed_policy
from testbed.objects.allocate import ServiceRanges
from testbed.objects.status import ApiError
from testbed.objects.store import Store

Object = dict[str, Any]

CNP: Object = {
    "apiVersion": "policy.networking.k8s.io/v1alpha2",
    "kind": "ClusterNetworkPolicy",
    "metadata": {"name": "guard"},
    "spec": {
        "tier": "Admin",
        "priority": 10,
        "subject": {"namespaces": {"matchLabels": {"ns": "x"}}},
        "ingress": [
            {
                "name": "no-y",
                "action": "Deny",
                "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}}],
                "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"destinationNamedPort": "dns"}],
            }
        ],
        "egress": [
            {
                "action": "Pass",
                "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}],
                "protocols": [{"udp": {"destinationPort": {"range": {"start": 53, "end": 54}}}}],
            }
        ],
    },
}
ANP: Object = {
    "apiVersion": "policy.networking.k8s.io/v1alpha1",
    "kind": "AdminNetworkPolicy",
    "metadata": {"name": "old"},
    "spec": {
        "priority": 5,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": {}}},
        "ingress": [
            {
                "action": "Allow",
                "from": [{"namespaces": {}}],
                "ports": [
                    {"portNumber": {"protocol": "UDP", "port": 53}},
                    {"portRange": {"protocol": "TCP", "start": 1, "end": 9}},
                    {"namedPort": "http"},
                ],
            }
        ],
    },
}
BANP: Object = {
    **ANP,
    "kind": "BaselineAdminNetworkPolicy",
    "metadata": {"name": "default"},
    "spec": {"subject": {"namespaces": {}}, "egress": [{"action": "Deny", "to": [{"namespaces": {}}]}]},
}


@pytest.fixture
def store() -> Store:
    return Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)


def changed(obj: Object, path: str, value: Any) -> Object:
    copy = deepcopy(obj)
    *way, last = (int(word) if word.isdigit() else word for word in path.split("."))
    here: Any = copy
    for word in way:
        here = here[word]
    if value is None:
        del here[last]
    else:
        here[last] = value
    return copy


@pytest.mark.parametrize("obj", [CNP, ANP, BANP], ids=lambda obj: obj["kind"])
def test_a_good_one_is_stored_and_read(store: Store, obj: Object) -> None:
    assert typed_policy(store.create(obj)).name == obj["metadata"]["name"]


@pytest.mark.parametrize(
    ("obj", "path", "value", "said"),
    [
        (CNP, "spec.tier", "Top", 'spec.tier: Unsupported value: "Top"'),
        (CNP, "spec.priority", 1001, "spec.priority: Invalid value: 1001: must be between 0 and 1000"),
        (
            CNP,
            "spec.subject",
            {},
            "spec.subject: Invalid value: {}: must have exactly one of namespaces, pods",
        ),
        (CNP, "spec.ingress.0.action", "Allow", 'spec.ingress[0].action: Unsupported value: "Allow"'),
        (CNP, "spec.ingress.0.from", [], "spec.ingress[0].from: Required value"),
        (CNP, "spec.ingress.0.name", "n" * 101, "must have at most 100 characters"),
        (CNP, "spec.ingress", [CNP["spec"]["ingress"][0]] * 26, "spec.ingress: Invalid value: 26"),
        (CNP, "spec.egress.0.to.0.networks.0", "10.0.0.0", "Invalid CIDR format provided"),
        (CNP, "spec.egress.0.protocols.0", {"destinationNamedPort": "dns"}, "cannot be set with namedPorts"),
        (CNP, "spec.egress.0.to.0", {"domainNames": ["a.example"]}, "is only supported for Accept rules"),
        (
            CNP,
            "spec.egress.0.protocols.0.udp.destinationPort.range.end",
            53,
            "Start port must be less than End port",
        ),
        (CNP, "spec.ingress.0.protocols.0", {"tcp": {}}, "must have at least 1 properties"),
        (CNP, "spec.ingress.0.from.0", {"fqdn": "a"}, 'unknown field "spec.ingress[0].from[0].fqdn"'),
        (ANP, "spec.ingress.0.action", "Accept", 'spec.ingress[0].action: Unsupported value: "Accept"'),
        (ANP, "spec.ingress.0.ports.0.portNumber.protocol", "ICMP", 'Unsupported value: "ICMP"'),
        (ANP, "spec.priority", None, "spec.priority: Required value"),
        (BANP, "metadata.name", "other", 'must be "default"'),
        (BANP, "spec.egress.0.action", "Pass", 'spec.egress[0].action: Unsupported value: "Pass"'),
    ],
)
def test_a_bad_one_is_refused(store: Store, obj: Object, path: str, value: Any, said: str) -> None:
    with pytest.raises(ApiError) as error:
        store.create(changed(obj, path, value))
    assert said in error.value.message


def test_all_kinds_are_read_into_one_model() -> None:
    guard, old, base = map(typed_policy, (CNP, ANP, BANP))
    assert (guard.tier, guard.priority, guard.subject.namespaces) == (
        "Admin",
        10,
        Selector((("ns", "x"),)),
    )
    assert guard.ingress == (
        Rule(
            0,
            "Deny",
            (Peer(0, Selection(pods=Selector((("pod", "a"),)))),),
            (Port("TCP", 80, 80), Port("", name="dns")),
            "no-y",
        ),
    )
    assert guard.egress == (
        Rule(
            0,
            "Pass",
            (Peer(0, blocks=(Block("10.0.0.0/8"), Block("fd00::/8"))), Peer(1, nodes=Selector())),
            (Port("UDP", 53, 54),),
        ),
    )
    assert old.ingress == (
        Rule(
            0,
            "Accept",
            (Peer(0, Selection()),),
            (Port("UDP", 53, 53), Port("TCP", 1, 9), Port("", name="http")),
        ),
    )
    assert (old.tier, base.tier, base.egress) == (
        "Admin",
        "Baseline",
        (Rule(0, "Deny", (Peer(0, Selection()),)),),
    )


@pytest.mark.parametrize(
    ("action", "read"),
    [("Accept", Rule(0, "Accept", ())), ("Deny", Rule(0, "Deny")), ("Pass", Rule(0, "Deny"))],
)
def test_a_rule_with_a_peer_that_is_not_understood_fails_closed(action: Any, read: Rule) -> None:
    rule = {"action": action, "to": [{"namespaces": {}}, {"domainNames": ["a.example"]}]}
    assert typed_policy(changed(CNP, "spec.egress", [rule])).egress == (read,)
