from __future__ import annotations

from pathlib import Path

import pytest

from testbed.dataplane import Dataplane, dataplanes
from testbed.errors import MissingCapability
from testbed.kernel import capabilities
from testbed.kernel.capabilities import CAPABILITIES, missing, require
from testbed.kernel.probe import PROBES, USER_NAMESPACE
from testbed.proxy import Proxier, proxiers
from testbed.registry import Registry


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Answers of a pretended kernel: name → why not. It has whatever is not in it."""
    answers: dict[str, str] = {}
    monkeypatch.setattr(capabilities, "probe", lambda names: {name: answers.get(name, "") for name in names})
    return answers


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder that is all there is of PATH."""
    monkeypatch.setattr(capabilities, "search_path", lambda: str(tmp_path))
    return tmp_path


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("")
        (folder / name).chmod(0o755)


def test_every_probe_is_of_a_capability() -> None:
    assert set(PROBES) <= set(CAPABILITIES)


@pytest.mark.parametrize("registry", [dataplanes, proxiers], ids=lambda registry: registry.kind)
def test_what_systems_need_is_a_capability(registry: Registry[Dataplane | Proxier]) -> None:
    assert [name for name in registry if not registry.get(name).needs <= set(CAPABILITIES)] == []


def test_a_machine_that_has_all_lacks_nothing(kernel: dict[str, str]) -> None:
    assert missing(["veth", "bridge", "vxlan"]) == []


def test_what_the_kernel_lacks_is_named_with_reason_and_fix(kernel: dict[str, str]) -> None:
    kernel["netem"] = "the kernel does not know this queueing discipline"
    (lack,) = missing(["veth", "netem"])
    assert lack.name == "netem"
    assert "delay" in lack.why
    assert "does not know" in lack.why
    assert "modprobe sch_netem" in lack.fix


def test_a_missing_program_is_lacking_even_where_the_kernel_could(
    kernel: dict[str, str], programs: Path
) -> None:
    (lack,) = missing(["ipset"])
    assert "no program ipset" in lack.why
    install(programs, "ipset")
    assert missing(["ipset"]) == []


def test_any_program_can_be_asked_for(programs: Path) -> None:
    install(programs, "kubectl")
    assert [lack.name for lack in missing(["tool:kubectl", "tool:helm"])] == ["tool:helm"]


def test_without_user_namespaces_that_alone_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "probe", lambda names: {USER_NAMESPACE: "Operation not permitted"})
    (lack,) = missing(["veth", "bridge", "netem"])
    assert lack.name == USER_NAMESPACE
    assert "sudo" in lack.fix


def test_an_unknown_name_is_a_mistake_in_the_program() -> None:
    with pytest.raises(KeyError):
        missing(["quantum"])


def test_limits_are_looked_at_only_for_a_cluster_of_some_size(tmp_path: Path) -> None:
    low = tmp_path / "sys/net/ipv4/neigh/default"
    low.mkdir(parents=True)
    (low / "gc_thresh3").write_text("1024\n")
    assert missing([], proc=tmp_path) == []
    (lack,) = missing([], pods=1000, nodes=20, proc=tmp_path)
    assert lack.name == "IPv4 neighbours"
    assert "2,420 needed" in lack.why
    assert "make setup" in lack.fix


def test_require_raises_with_everything_at_once(kernel: dict[str, str], programs: Path) -> None:
    kernel["ipip"] = "no"
    with pytest.raises(MissingCapability) as raised:
        require(["ipip", "dnsmasq"])
    assert raised.value.exit_code == 3
    assert {lack.name for lack in raised.value.lacks} == {"ipip", "dnsmasq"}
