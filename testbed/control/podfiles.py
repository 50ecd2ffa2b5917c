"""What a kubelet and a container runtime write for a pod: host name, resolver files, environment.

Pure text out of a snapshot. Sources: kubernetes v1.36 pkg/kubelet/kubelet_pods.go (hosts file, FQDN),
pkg/kubelet/network/dns/dns.go (resolv.conf), pkg/kubelet/kubelet_pods.go (environment),
third_party/forked/golang/expansion (``$(VAR)``); the line format of resolv.conf is containerd's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.control.bandwidth import bandwidth_problem
from testbed.control.envvars import Links, links
from testbed.control.snapshot import ClusterFacts, Container, Pod, Snapshot
from testbed.control.tokens import issue
from testbed.objects.defaults import TOKEN_PATH

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_HOSTNAME = 63
MAX_NODENAME = 64
"""Characters of a pod's host name (a DNS label), and of what the kernel takes (__NEW_UTS_LEN)."""
MAX_NAMESERVERS = 3
MAX_SEARCHES = 32
MAX_SEARCH_LINE = 2048
MAX_SEARCH = 253
"""The kubelet's limits on resolv.conf; what exceeds them is cut."""

_LOCAL_HOSTS = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "fe00::0\tip6-mcastprefix\n"
    "fe00::1\tip6-allnodes\n"
    "fe00::2\tip6-allrouters\n"
)
_NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
"""Not Kubernetes': images bring it. It keeps the machine's own resolver plug-ins out of pods."""


# --- host name --------------------------------------------------------------------------------------


def pod_hostname(snapshot: Snapshot, pod: Pod) -> tuple[str, str]:
    """The name the kernel reports in the pod (``hostname``), and its domain, "" where it has none.

    With setHostnameAsFQDN the name is the whole FQDN, unless that is too long: see ``sandbox_problem``.
    """
    hostname, domain = _short_hostname(pod), _domain(snapshot.facts, pod)
    if pod.set_hostname_as_fqdn and domain and not sandbox_problem(snapshot.facts, pod):
        return f"{hostname}.{domain}", domain
    return hostname, domain


def sandbox_problem(facts: ClusterFacts, pod: Pod) -> str:
    """Why a kubelet could not make this pod's sandbox, "" if nothing is wrong (FailedCreatePodSandBox)."""
    if not pod.host_network and (problem := bandwidth_problem(pod.annotations)):
        return problem
    domain = _domain(facts, pod)
    fqdn = f"{_short_hostname(pod)}.{domain}"
    if not (pod.set_hostname_as_fqdn and domain) or len(fqdn) <= MAX_NODENAME:
        return ""
    return (
        f"failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long "
        f"({MAX_NODENAME} characters is the max, {len(fqdn)} characters requested)"
    )


def _short_hostname(pod: Pod) -> str:
    if pod.host_network:
        return pod.node
    name = pod.hostname or pod.name
    return name if len(name) <= MAX_HOSTNAME else name[:MAX_HOSTNAME].rstrip("-.")


def _domain(facts: ClusterFacts, pod: Pod) -> str:
    if pod.host_network or not pod.subdomain:
        return ""
    return f"{pod.subdomain}.{pod.namespace}.svc.{facts.cluster_domain}"


# --- files ------------------------------------------------------------------------------------------


def pod_files(snapshot: Snapshot, pod: Pod, *, host_files: Mapping[str, str] = {}) -> dict[str, str]:
    """The files in the pod's /etc, and those of its service account: absolute path → content.

    host_files: the node's own files by path; /etc/hosts of it is what hostNetwork pods see.
    """
    return {
        "/etc/hosts": _hosts(snapshot, pod, host_files.get("/etc/hosts", _LOCAL_HOSTS)),
        "/etc/hostname": pod_hostname(snapshot, pod)[0] + "\n",
        "/etc/resolv.conf": _resolv_conf(snapshot, pod),
        "/etc/nsswitch.conf": _NSSWITCH,
        **_account(snapshot, pod),
    }


def _account(snapshot: Snapshot, pod: Pod) -> dict[str, str]:
    """What a client of the API inside a pod finds: who it is, and whom it may trust."""
    facts = snapshot.facts
    if not (pod.token and facts.api_ca):
        return {}
    issuer = f"https://kubernetes.default.svc.{facts.cluster_domain}"
    token = issue(facts.token_key, issuer, pod.namespace, pod.service_account, pod.name, pod.uid)
    content = {"ca.crt": facts.api_ca, "namespace": pod.namespace, "token": token}
    return {f"{TOKEN_PATH}/{name}": text for name, text in content.items()}


def _hosts(snapshot: Snapshot, pod: Pod, node_hosts: str) -> str:
    if pod.host_network:
        text = "# Kubernetes-managed hosts file (host network).\n" + node_hosts
    else:
        hostname, domain = _short_hostname(pod), _domain(snapshot.facts, pod)
        names = f"{hostname}.{domain}\t{hostname}" if domain else hostname
        text = "# Kubernetes-managed hosts file.\n" + _LOCAL_HOSTS
        text += "".join(f"{ip}\t{names}\n" for ip in pod.ips)
    if pod.host_aliases:
        text += "\n# Entries added by HostAliases.\n"
    for alias in pod.host_aliases:
        text += "\t".join([alias["ip"], *(alias.get("hostnames") or ())]) + "\n"
    return text


@dataclass(frozen=True)
class Resolver:
    """The three lists of a resolv.conf."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            *(["search " + " ".join(self.searches)] if self.searches else []),
            *(f"nameserver {server}" for server in self.nameservers),
            *(["options " + " ".join(self.options)] if self.options else []),
        ]
        return "".join(line + "\n" for line in lines)


def parse_resolv_conf(text: str) -> Resolver:
    """A node's resolv.conf as the kubelet reads it: the last search line counts, trailing dots go."""
    nameservers: list[str] = []
    searches: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", ";")):
            continue
        if words[0] == "nameserver" and len(words) > 1:
            nameservers.append(words[1])
        elif words[0] == "search":
            searches = tuple(word.removesuffix(".") for word in words[1:] if word != ".")
        elif words[0] == "options":
            options |= _options(words[1:])
    return Resolver(tuple(nameservers), searches, tuple(options.values()))


def pod_resolver(snapshot: Snapshot, pod: Pod) -> Resolver:
    """What the pod's resolv.conf holds, by its dnsPolicy and dnsConfig, within the kubelet's limits."""
    return _within_limits(_asked_resolver(snapshot.facts, pod))


def resolver_warnings(facts: ClusterFacts, pod: Pod) -> Iterator[tuple[str, str]]:
    """What the kubelet says of a pod's resolv.conf: reasons and messages of events. Source: dns.go."""
    if pod.dns_policy == "ClusterFirst" and not pod.host_network and not _servers(facts):
        yield (
            "MissingClusterDNS",
            f'pod: "{pod.name}_{pod.namespace}({pod.uid})". kubelet does not have ClusterDNS IP configured '
            'and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.',
        )
    asked = _asked_resolver(facts, pod)
    applied = _within_limits(asked)
    if applied.nameservers != asked.nameservers:
        yield (
            "DNSConfigForming",
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver "
            f"line is: {' '.join(applied.nameservers)}",
        )
    if applied.searches != asked.searches:
        yield (
            "DNSConfigForming",
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line "
            f"is: {' '.join(applied.searches)}",
        )


def _servers(facts: ClusterFacts) -> tuple[str, ...]:
    return (facts.node_dns,) if facts.node_dns else facts.dns_addresses


def _asked_resolver(facts: ClusterFacts, pod: Pod) -> Resolver:
    """The same before the limits."""
    host = parse_resolv_conf(facts.host_resolv_conf)
    policy = pod.dns_policy
    servers = _servers(facts)
    if policy == "ClusterFirst" and pod.host_network:
        policy = "Default"
    if policy == "None":
        resolver = Resolver()
    elif policy == "Default" or not servers:  # the latter: event MissingClusterDNS
        resolver = host
    else:
        zone = facts.cluster_domain
        cluster = (f"{pod.namespace}.svc.{zone}", f"svc.{zone}", zone)
        resolver = Resolver(servers, _unique((*cluster, *host.searches)), ("ndots:5",))
    return _with_dns_config(resolver, pod.dns_config)


def _resolv_conf(snapshot: Snapshot, pod: Pod) -> str:
    # With nothing to say the runtime copies the node's file.
    return str(pod_resolver(snapshot, pod)) or snapshot.facts.host_resolv_conf


def _with_dns_config(resolver: Resolver, config: Mapping[str, Any]) -> Resolver:
    if not config:
        return resolver
    asked = [
        option["name"] + (f":{option['value']}" if option.get("value") else "")
        for option in config.get("options") or ()
    ]
    return Resolver(
        _unique((*resolver.nameservers, *(config.get("nameservers") or ()))),
        _unique((*resolver.searches, *(config.get("searches") or ()))),
        tuple((_options(resolver.options) | _options(asked)).values()),
    )


def _within_limits(resolver: Resolver) -> Resolver:
    searches = [name for name in resolver.searches[:MAX_SEARCHES] if len(name) <= MAX_SEARCH]
    while len(" ".join(searches)) > MAX_SEARCH_LINE:
        searches.pop()
    return Resolver(resolver.nameservers[:MAX_NAMESERVERS], tuple(searches), resolver.options)


def _options(words: Iterable[str]) -> dict[str, str]:
    """Resolver options by name, the later of two winning."""
    return {word.partition(":")[0]: word for word in words}


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


# --- environment ------------------------------------------------------------------------------------


def pod_env(snapshot: Snapshot, pod: Pod, told: Links | None = None) -> dict[str, dict[str, str]]:
    """The environment of each container's processes: container name → variable → value.

    told: what the containers were told of Services when they started; None: they start now.
    """
    told = links(snapshot, pod) if told is None else told
    return {container.name: container_env(snapshot, pod, container, told) for container in pod.containers}


def container_env(snapshot: Snapshot, pod: Pod, container: Container, told: Links) -> dict[str, str]:
    """The environment of one container's processes; see ``pod_env``."""
    services = {name: value for service in told for name, value in service.items()}
    env: dict[str, str] = {}
    for entry in container.env:
        value = _env_value(snapshot, pod, entry, {**services, **env})
        if value is not None:
            env[entry["name"]] = value
    runtime = {"PATH": DEFAULT_PATH, "HOSTNAME": pod_hostname(snapshot, pod)[0], "HOME": "/root"}
    return {**runtime, **services, **env}


def _env_value(
    snapshot: Snapshot, pod: Pod, entry: Mapping[str, Any], known: Mapping[str, str]
) -> str | None:
    """The value of one env entry; None: its source is not there, so the variable is not set."""
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value") or "", known)
    for kind, read in ENV_SOURCES.items():
        if kind in source:
            return read(snapshot, pod, source[kind])
    return None


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by what is known of NAME; unknown ones stay, ``$$(NAME)`` gives ``$(NAME)``."""

    def replace(match: re.Match[str]) -> str:
        name = match.group("name")
        return "$" if name is None else known.get(name, match.group())

    return re.sub(r"\$(?:\$|\((?P<name>[^)]*)\))", replace, text)


def downward(snapshot: Snapshot, pod: Pod, field: str) -> str | None:
    """What the downward API says of a pod field such as ``status.podIP``; None: no such field."""
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", field):
        return (pod.labels if match[1] == "labels" else pod.annotations).get(match[2], "")
    node = snapshot.node.get(pod.node)
    host_ips = node.addresses if node else ()
    return {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.uid,
        "spec.nodeName": pod.node,
        "spec.serviceAccountName": pod.service_account,
        "status.hostIP": host_ips[0] if host_ips else "",
        "status.hostIPs": ",".join(host_ips),
        "status.podIP": pod.ips[0] if pod.ips else "",
        "status.podIPs": ",".join(pod.ips),
    }.get(field)


def _field_ref(snapshot: Snapshot, pod: Pod, ref: Mapping[str, Any]) -> str | None:
    return downward(snapshot, pod, ref.get("fieldPath", ""))


ENV_SOURCES: dict[str, Callable[[Snapshot, Pod, Mapping[str, Any]], str | None]] = {"fieldRef": _field_ref}
"""How each kind of ``valueFrom`` is read. ConfigMaps, Secrets and resources are not in the snapshot yet."""
