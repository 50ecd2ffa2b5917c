"""Records as dnsmasq files, and how a change of them takes effect. Pure text.

No one dnsmasq answers as CoreDNS does, so four share the work, each in the role it can play:

- ``front`` has every record and answers on the pod's port 53; names of the zone that it does not know it asks
  of ``auth`` or ``pods``, all others of ``cache``. It caches nothing.
- ``auth`` knows no names, but is the zone's authority: its NXDOMAIN carries the SOA. What ``front`` hands on
  of it about a name that exists with another type becomes NODATA.
- ``pods`` makes up ``a-b-c-d.N.pod.Z``. Alone, since dnsmasq answers reverse questions for all it makes up.
- ``cache`` asks outside and keeps what it heard, at most 30 seconds as kubeadm's Corefile says. It also has
  the zone's version, whose TTL is another one.

Addresses are files of a directory that ``front`` watches; the rest is configuration, which dnsmasq reads when
it starts. See fidelity notes in ``docs/fidelity.md``; each statement was tried with dnsmasq 2.90.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal

from testbed.dns.records import SCHEMA_VERSION, Records, ServiceRecords
from testbed.state import NameFiles

TTL = 30
"""Seconds: kubeadm's Corefile, ``ttl 30``."""
VERSION_TTL = 28800
CACHE_SECONDS = 30
CACHE_ENTRIES = 9984
MAX_FORWARDS = 1000
"""kubeadm's Corefile: ``cache 30`` (of plugin cache's default capacity), ``max_concurrent 1000``."""

ROLES = ("auth", "pods", "cache", "front")
"""In the order in which they are started: each asks only those before it."""

PLACE = "/run/dns"
"""Where a server's container sees its files."""
HOSTS = "hosts"

FIRST_PORT = {"front": 1100, "auth": 1200, "pods": 1300, "cache": 1400}
"""The first of a role's ports; each restart takes the next. All are below ``min-port``, so that no question
ever leaves from one of them."""
MIN_PORT = 2048

UNASKED = "invalid"
"""A name that every server answers without asking another, so whatever is outside (RFC 6761 section 6.4)."""

_COMMON = f"""\
user=
group=
pid-file
log-facility=-
no-resolv
no-hosts
no-poll
min-port={MIN_PORT}
local=/{UNASKED}/
"""
# user, group: a sandbox of one user id has no other to change to.


def port(role: str) -> str:
    """What stands in a configuration for the port of a role; whoever starts it puts the number there."""
    return f"@{role}@"


def with_ports(text: str, ports: Mapping[str, int]) -> str:
    """A configuration with the roles' ports filled in."""
    for role, number in ports.items():
        text = text.replace(port(role), str(number))
    return text


# --- the cluster's servers ------------------------------------------------------------------------------


def name_files(records: Records, upstreams: Iterable[str], serial: int) -> NameFiles:
    """Everything the servers of one kube-dns pod read. upstreams: addresses; serial: of the SOA."""
    zone = records.zone
    externals = _externals(records)
    return NameFiles(
        hosts={
            f"{namespace}.{name}": text
            for (namespace, name), service in records.services.items()
            if (text := hosts_text(service))
        },
        servers={
            "auth": lines([*_inner("auth"), *_auth(zone, serial)]),
            "pods": lines([*_inner("pods"), *_pods(records)]),
            "cache": lines([*_inner("cache"), *_cache(zone, tuple(upstreams))]),
            "front": lines(_front(records)),
        },
        externals=externals,
    )


@lru_cache(maxsize=1 << 16)
def hosts_text(service: ServiceRecords) -> str:
    """The hosts file of one Service. An address's first line is what its PTR question is answered by."""
    lines = [f"{address} {name}\n" for address, name in service.endpoints]
    lines += [f"{address} {service.name}\n" for address in service.addresses]
    return "".join(lines)


def _externals(records: Records) -> tuple[str, ...]:
    """Names outside the zone that aliases lead to: dnsmasq gives their addresses only if it has them."""
    targets = (target for _, target in _aliases(records))
    return tuple(sorted({name for name in targets if not f".{name}".endswith(f".{records.zone}")}))


def _inner(role: str) -> Iterator[str]:
    """A server that only the others of its pod ask."""
    yield f"port={port(role)}"
    yield "listen-address=127.0.0.1"
    yield "bind-interfaces"


def _auth(zone: str, serial: int) -> Iterator[str]:
    yield f"auth-server=ns.dns.{zone},127.0.0.1"
    yield f"auth-zone={zone}"
    yield f"auth-soa={serial},hostmaster.{zone},7200,1800,86400"
    yield f"auth-ttl={TTL}"


def _pods(records: Records) -> Iterator[str]:
    zone = records.zone
    yield from ("cache-size=0", f"local-ttl={TTL}", f"server=/{zone}/127.0.0.1#{port('auth')}")
    for namespace in records.namespaces:
        yield f"txt-record=_.{namespace}.pod.{zone},_"
        yield f"synth-domain={namespace}.pod.{zone},0.0.0.0,255.255.255.255"
        for cidr in records.pod_ranges:
            if ip_network(cidr).prefixlen >= 64:  # dnsmasq counts in 64 bits
                yield f"synth-domain={namespace}.pod.{zone},{cidr}"


def _cache(zone: str, upstreams: tuple[str, ...]) -> Iterator[str]:
    yield from (f"cache-size={CACHE_ENTRIES}", f"dns-forward-max={MAX_FORWARDS}")
    yield from (f"max-ttl={CACHE_SECONDS}", f"max-cache-ttl={CACHE_SECONDS}", f"neg-ttl={CACHE_SECONDS}")
    yield f"local-ttl={VERSION_TTL}"
    yield f"txt-record=dns-version.{zone},{SCHEMA_VERSION}"
    yield f"server=/{zone}/127.0.0.1#{port('auth')}"
    for address in upstreams:
        yield f"server={address}"


def _front(records: Records) -> Iterator[str]:
    zone = records.zone
    yield f"port={port('front')}"
    yield from ("cache-size=0", f"local-ttl={TTL}", f"dns-forward-max={MAX_FORWARDS}")
    yield f"hostsdir={PLACE}/{HOSTS}"
    yield f"server=127.0.0.1#{port('cache')}"
    yield f"server=/{zone}/127.0.0.1#{port('auth')}"
    yield f"server=/pod.{zone}/127.0.0.1#{port('pods')}"
    yield f"server=/dns-version.{zone}/127.0.0.1#{port('cache')}"
    for namespace in records.namespaces:  # an existing namespace's name is NODATA, services or not
        yield f"txt-record=_.{namespace}.svc.{zone},_"
    for service in records.services.values():
        for srv in service.srv:
            yield f"srv-host={srv.name},{srv.target},{srv.port},0,{srv.weight}"
    for alias, target in _aliases(records):
        yield f"cname={alias},{target}"
    for address, names in records.pointers.items():
        for name in names:
            yield f"ptr-record={ip_address(address).reverse_pointer},{name}"


def _aliases(records: Records) -> Iterator[tuple[str, str]]:
    """ExternalNames whose aliases come to an end: dnsmasq does not start with those that go in circles."""
    alias = {service.name: service.alias for service in records.services.values() if service.alias}
    for name, target in alias.items():
        seen = {name}
        while target in alias and target not in seen:
            seen.add(target)
            target = alias[target]
        if target not in seen:
            yield name, alias[name]


def lines(settings: Iterable[str]) -> str:
    """A configuration: what each server has, and these settings."""
    return _COMMON + "".join(f"{setting}\n" for setting in settings)


# --- other servers --------------------------------------------------------------------------------------


def node_cache(zone: str, address: str, cluster_dns: str, upstreams: Iterable[str]) -> NameFiles:
    """NodeLocal DNSCache: answers on ``address`` of a node, asks ``cluster_dns`` about the cluster's names.

    Source: kubernetes cluster/addons/dns/nodelocaldns: a cache of 9984 entries, for 30 s.
    """
    settings = [
        "port=53",
        f"listen-address={address}",
        "bind-interfaces",
        f"cache-size={CACHE_ENTRIES}",
        f"dns-forward-max={MAX_FORWARDS}",
        f"max-ttl={CACHE_SECONDS}",
        f"max-cache-ttl={CACHE_SECONDS}",
        f"server=/{zone}/{cluster_dns}",
        f"server=/in-addr.arpa/{cluster_dns}",
        f"server=/ip6.arpa/{cluster_dns}",
        *(f"server={upstream}" for upstream in upstreams),
    ]
    return NameFiles(servers={"front": lines(settings)})


# --- changes --------------------------------------------------------------------------------------------

How = Literal["nothing", "files", "restart"]


@dataclass(frozen=True)
class NameChange:
    """What is different between two NameFiles. hosts: file → content, "" for one that goes."""

    hosts: dict[str, str]
    servers: dict[str, str]
    externals: tuple[str, ...] | None = None

    @property
    def how(self) -> How:
        """files: dnsmasq notices by inotify, nothing else has to be done; restart: some server reads a new
        configuration, which it does only when it starts (SIGHUP does not)."""
        if self.servers:
            return "restart"
        return "files" if self.hosts or self.externals is not None else "nothing"


def change(old: NameFiles | None, new: NameFiles) -> NameChange:
    """What has to be done to get from ``old`` (None: nothing yet) to ``new``."""
    old = old or NameFiles()
    hosts = {name: text for name, text in new.hosts.items() if old.hosts.get(name) != text}
    hosts |= dict.fromkeys(sorted(old.hosts.keys() - new.hosts.keys()), "")
    servers = {role: text for role, text in new.servers.items() if old.servers.get(role) != text}
    return NameChange(hosts, servers, new.externals if new.externals != old.externals else None)
