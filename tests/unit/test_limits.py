from __future__ import annotations

from pathlib import Path

import pytest

from testbed.kernel.limits import (
    Limit,
    limits,
    namespaces_forbidden_by,
    neighbours_needed,
    start_seconds,
)

FILES = {
    "sys/net/ipv4/neigh/default/gc_thresh3": "1024",
    "sys/net/ipv6/neigh/default/gc_thresh3": "1024",
    "sys/user/max_net_namespaces": "96365",
    "sys/net/netfilter/nf_conntrack_max": "262144",
    "sys/kernel/pty/max": "4096",
    "sys/kernel/pty/reserve": "1024",
    "sys/kernel/pty/nr": "12",
    "sys/fs/inotify/max_user_instances": "128",
    "meminfo": "MemTotal:       24683032 kB\nMemFree:        23979204 kB\nMemAvailable:   8000000 kB\n",
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    return tmp_path


def by_name(proc: Path, pods: int, nodes: int) -> dict[str, Limit]:
    return {limit.name: limit for limit in limits(pods, nodes, proc)}


def test_the_kernels_default_neighbour_limit_refuses_a_thousand_pods(proc: Path) -> None:
    found = by_name(proc, 1000, 20)
    assert not found["IPv4 neighbours"].holds
    assert not found["IPv6 neighbours"].holds
    assert found["IPv4 neighbours"].have == 1024


def test_the_kernels_default_neighbour_limit_allows_a_small_cluster(proc: Path) -> None:
    assert all(limit.holds for limit in limits(30, 3, proc))


def test_each_family_has_a_limit_of_its_own(proc: Path) -> None:
    (proc / "sys/net/ipv4/neigh/default/gc_thresh3").write_text("131072\n")
    found = by_name(proc, 1000, 20)
    assert found["IPv4 neighbours"].holds
    assert not found["IPv6 neighbours"].holds


@pytest.mark.parametrize(("pods", "nodes", "needed"), [(0, 1, 2), (512, 0, 1024), (1000, 20, 2420)])
def test_neighbours_are_two_a_pod_and_every_node_for_each_other(pods: int, nodes: int, needed: int) -> None:
    assert neighbours_needed(pods, nodes) == needed


def test_memory_is_counted_in_megabytes(proc: Path) -> None:
    memory = by_name(proc, 1000, 20)["free memory in MB"]
    assert (memory.have, memory.need) == (8192, 860)


def test_terminals_of_the_host_and_those_in_use_are_not_ours(proc: Path) -> None:
    assert by_name(proc, 30, 3)["pseudo-terminals"].have == 4096 - 1024 - 12


def test_descriptors_are_counted_for_the_busiest_node(proc: Path) -> None:
    assert by_name(proc, 31, 3)["file descriptors"].need == by_name(proc, 33, 3)["file descriptors"].need


def test_what_the_machine_does_not_say_is_no_limit(tmp_path: Path) -> None:
    found = by_name(tmp_path, 10**6, 1000)
    assert found["IPv4 neighbours"].have is None
    assert found["IPv4 neighbours"].holds


@pytest.mark.parametrize(
    ("key", "value", "forbids"),
    [
        ("user/max_user_namespaces", 0, True),
        ("user/max_user_namespaces", 1, False),
        ("kernel/unprivileged_userns_clone", 0, True),
        ("kernel/unprivileged_userns_clone", 1, False),
        ("kernel/apparmor_restrict_unprivileged_userns", 1, True),
        ("kernel/apparmor_restrict_unprivileged_userns", 0, False),
    ],
)
def test_settings_that_keep_ordinary_users_out_are_named(
    tmp_path: Path, key: str, value: int, forbids: bool
) -> None:
    file = tmp_path / "sys" / key
    file.parent.mkdir(parents=True)
    file.write_text(f"{value}\n")
    expected = (f"{key.replace('/', '.')} = {value}",) if forbids else ()
    assert namespaces_forbidden_by(tmp_path) == expected


def test_a_larger_cluster_takes_longer_to_start() -> None:
    assert start_seconds(30, 3) < start_seconds(1000, 3) < start_seconds(1000, 20) < 5
