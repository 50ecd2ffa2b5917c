"""Any Mininet topology as a cluster's fabric: its hosts become the nodes.

Serves Mininet's own topologies (``tree``, ``linear``) and a user's file, which needs to know nothing of
Testbed: a ``Topo`` subclass, or a ``topos`` dictionary as for ``mn --custom``.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

from mininet.topo import Topo

from testbed.errors import InputError
from testbed.spec.addressing import Cut, CutError, Request, flat
from testbed.spec.params import Param
from testbed.topology import Builder
from testbed.topology.parts import add_core, complete, host_options
from testbed.topology.plan import FabricPlan, PlannedHost
from testbed.topology.planning import default_plan

Factory = Callable[..., Topo]


def adapt(base: Topo, plan: FabricPlan) -> Topo:
    """A copy of ``base`` with the plan's nodes as its hosts, and everything else on its first switch.

    Hosts are matched by name, or in natural order (h1 is node-1). Raises InputError.
    """
    topo = Topo()
    adapt_into(topo, base, plan)
    return topo


def adapt_into(topo: Topo, base: Topo, plan: FabricPlan) -> None:
    """As ``adapt``, into an empty Topo. Hosts beyond the number of nodes are left out."""
    from testbed.fabric.nodes import ClusterHost  # here: it brings mininet.node

    switches = base.switches()
    if not switches:
        raise InputError("the topology has no switch for the gateway and the control plane")
    hosts = hosts_of(base)
    nodes = _matched(hosts, plan)
    _check_names(set(base.nodes()) - set(hosts), plan)
    names: dict[str, str] = {switch: topo.addSwitch(switch, **_info(base, switch)) for switch in switches}
    for name in base.hosts():
        if name in nodes:
            options = _info(base, name) | host_options(nodes[name])
            names[name] = topo.addHost(nodes[name].name, **{"cls": ClusterHost} | options)
        elif name not in hosts:
            names[name] = topo.addNode(name, **_info(base, name))
    for one, other, info in base.links(withInfo=True):
        if one in names and other in names:
            ends = {"node1", "node2"}
            options = plan.link | {key: value for key, value in info.items() if key not in ends}
            topo.addLink(names[one], names[other], **options)
    add_core(topo, plan, switches[0])
    complete(topo, plan)


def _check_names(fabric: set[str], plan: FabricPlan) -> None:
    """What a stranger calls its switches and routers is the name of nobody in the plan."""
    hosts = (*plan.nodes, plan.control_plane, plan.gateway, *plan.external)
    taken = fabric & {host.name for host in hosts}
    taken |= {name for name in fabric if re.fullmatch(r"outside[0-9]+", name)}
    if taken:
        raise InputError(f"the topology's own {', '.join(sorted(taken))}: the name is taken")


def hosts_of(base: Topo) -> list[str]:
    """The hosts that can be nodes, in natural order: routers and the like stay what they are."""
    return [name for name in base.hosts() if not _is_router(base.nodeInfo(name))]


def _is_router(info: Mapping[str, Any]) -> bool:
    from testbed.fabric.nodes import Router

    cls = info.get("cls")
    return info.get("role") in ("router", "gateway") or (inspect.isclass(cls) and issubclass(cls, Router))


def _matched(hosts: list[str], plan: FabricPlan) -> dict[str, PlannedHost]:
    by_name = {node.name: node for node in plan.nodes}
    if set(by_name) <= set(hosts):
        return by_name
    if len(hosts) < len(plan.nodes):
        raise InputError(f"the topology has {len(hosts)} hosts for {len(plan.nodes)} nodes")
    return dict(zip(hosts, plan.nodes, strict=False))


def _info(base: Topo, name: str) -> dict[str, Any]:
    return {key: value for key, value in base.nodeInfo(name).items() if key != "isSwitch"}


# --- a user's file ------------------------------------------------------------------------------------


def load_file(path: str) -> type[Builder]:
    """The builder of a user's ``.py`` file: its ``topos`` entry, or its only Topo subclass.

    The file is run: it is the user's own code. Raises InputError where it cannot be used.
    """
    module = _run(Path(path))
    found = _candidates(module)
    if len(found) > 1 and Path(path).stem in found:
        found = {Path(path).stem: found[Path(path).stem]}
    if len(found) != 1:
        names = ", ".join(sorted(found))
        what = f"several topologies ({names}): leave one in topos" if found else "no Topo subclass"
        raise InputError(f"{path} has {what}")
    factory = next(iter(found.values()))
    if inspect.isclass(factory) and hasattr(factory, "cut") and hasattr(factory, "parameters"):
        return cast(type[Builder], factory)
    return _adapted(factory, path)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"testbed_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a stranger's file may fail in any way
        raise InputError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _candidates(module: ModuleType) -> dict[str, Factory]:
    topos = getattr(module, "topos", None)
    if isinstance(topos, dict):
        return {str(name): factory for name, factory in topos.items() if callable(factory)}
    return {
        name: thing
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and issubclass(thing, Topo) and thing.__module__ == module.__name__
    }


def _adapted(factory: Factory, path: str) -> type[Builder]:
    """A builder around a topology that knows nothing of plans."""

    def make(params: Mapping[str, Any]) -> Topo:
        try:
            base = factory(**params)
        except Exception as error:  # a stranger's code may fail in any way
            raise CutError(
                ("topology", "builder"), f"{path} fails: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(base, Topo):
            raise CutError(("topology", "builder"), f"{path} makes no Topo")
        return base

    class Adapted(Topo):  # type: ignore[misc]
        parameters: ClassVar[Mapping[str, Param] | None] = None

        @classmethod
        def cut(cls, request: Request) -> Cut:
            base = make(request.params)
            hosts = len(hosts_of(base))
            if hosts != len(request.nodes):
                message = f"{path} has {hosts} hosts for {len(request.nodes)} nodes"
                raise CutError(("topology", "builder"), message)
            if not base.switches():
                raise CutError(("topology", "builder"), f"{path} has no switch")
            return flat(request)

        def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
            base = make(params)
            adapt_into(self, base, plan or default_plan(Adapted, params, len(hosts_of(base))))

    return Adapted
