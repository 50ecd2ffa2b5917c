"""Imports point down only, deciding knows nothing of acting, and siblings do not know each other.

Read from the source text, so that nothing is imported; docs/design.md says the same in words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("campaign",),
    ("conformance", "labs", "scenario"),
    ("report",),
    ("api",),
    ("measure", "faults"),
    ("cluster",),
    ("dataplane", "dns", "proxy"),
    ("policy",),
    ("control",),
    ("topology",),
    ("objects", "spec"),
    ("fabric", "relays"),
    ("kernel", "apps"),
    ("cluster.messages", "rules"),
    ("state",),
    ("cells",),
    ("documents", "quantiles", "records", "registry", "units", "wait"),
    ("errors",),
)
"""Packages and modules below testbed, from the top down; those of one line do not know each other.

``cluster.messages`` is vocabulary, as ``state`` is: what processes of several layers say to each other.
"""

RANK = {name: len(LAYERS) - number for number, names in enumerate(LAYERS) for name in names}

CLOCKS = {("testbed.objects.store", "time")}
"""The store takes its clock as an argument, whose default is the real one."""

PURE = {
    "control",
    "dataplane",
    "dns",
    "objects",
    "policy",
    "proxy",
    "rules",
    "spec",
    "state",
    "errors",
    "registry",
    "quantiles",
    "units",
}
ACTING = {
    *("testbed.kernel", "testbed.fabric"),
    *("asyncio", "ctypes", "fcntl", "multiprocessing", "select", "selectors", "shutil", "signal", "socket"),
    *("ssl", "subprocess", "tempfile", "threading", "time", "urllib.request", "http.client"),
    *("aiohttp", "mininet", "pandas", "psutil", "pyroute2", "scapy"),
}
"""What pure code does not import: whatever touches the system, and the clock."""

MODES = {"dataplane": "dataplanes", "proxy": "proxiers"}
"""Packages whose modules register themselves, and the registry they do it in."""


@dataclass(frozen=True)
class Import:
    """One imported module, as ``a.b`` or, for ``from a.b import c``, as ``a.b.c`` (c may be an attribute)."""

    module: str
    line: int

    def within(self, package: str) -> bool:
        return f"{self.module}.".startswith(f"{package}.")


def layer_of(module: str) -> str:
    """The longest name in LAYERS that the module is within; the first part where none is, "" for testbed."""
    parts = module.split(".")[1:]
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return next((name for name in reversed(names) if name in RANK), names[0] if names else "")


@dataclass(frozen=True)
class Source:
    """A Python file of the project."""

    path: Path
    module: str

    @property
    def layer(self) -> str:
        return layer_of(self.module)

    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    def imports(self) -> Iterator[Import]:
        for node in ast.walk(self.tree()):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def sources() -> tuple[Source, ...]:
    def module(path: Path) -> str:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return tuple(Source(path, module(path)) for path in sorted((ROOT / "testbed").rglob("*.py")))


def upward(layer: str, target: str) -> bool:
    """Whether code of ``layer`` may not import ``target``: it is above, or beside it."""
    return layer != target and RANK[target] >= RANK[layer]


def violations(source: Source) -> list[str]:
    found = []
    for each in source.imports():
        target = layer_of(each.module) if each.within("testbed") else ""
        # `from testbed import __version__` names no module of a layer
        if target in RANK and upward(source.layer, target):
            found.append(f"{source}:{each.line} imports {each.module}")
    return found


def test_every_package_and_module_has_its_layer() -> None:
    assert {source.layer for source in sources()} - {""} == set(RANK)


def test_imports_point_down() -> None:
    # testbed/__init__.py hands out the Python API when first asked for it and belongs to no layer.
    assert [line for source in sources() if source.layer for line in violations(source)] == []


def test_pure_packages_import_nothing_that_acts() -> None:
    found = [
        f"{source}:{each.line} imports {each.module}"
        for source in sources()
        if source.layer in PURE
        for each in source.imports()
        if any(each.within(acting) for acting in ACTING) and (source.module, each.module) not in CLOCKS
    ]
    assert found == []


def test_mininet_networks_are_known_to_the_fabric_alone() -> None:
    # mininet.topolib is Mininet's own topologies, graphs like those of mininet.topo.
    found = [
        f"{source}:{each.line} imports {each.module}"
        for source in sources()
        if source.layer != "fabric"
        for each in source.imports()
        if each.within("mininet") and not (each.within("mininet.topo") or each.within("mininet.topolib"))
    ]
    assert found == []


def test_reports_are_made_from_files_never_from_a_live_cluster() -> None:
    live = ("testbed.api", "testbed.cluster", "testbed.fabric", "testbed.kernel")
    found = [
        f"{source}:{each.line} imports {each.module}"
        for source in sources()
        if source.layer == "report"
        for each in source.imports()
        if any(each.within(package) for package in live)
    ]
    assert found == []


def modes(package: str) -> list[Source]:
    """Modules of the package that register something."""
    registry = MODES[package]
    return [source for source in sources() if source.layer == package and _registers(source.tree(), registry)]


def _registers(tree: ast.Module, registry: str) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "register"
        and isinstance(node.value, ast.Name)
        and node.value.id == registry
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("package", MODES)
def test_no_mode_imports_another(package: str) -> None:
    names = {source.module for source in modes(package)}
    found = [
        f"{source}:{each.line} imports {each.module}"
        for source in modes(package)
        for each in source.imports()
        for other in names - {source.module}
        if each.within(other)
    ]
    assert names
    assert found == []


def test_the_check_sees_relative_and_nested_imports(tmp_path: Path) -> None:
    """The check itself: an import inside a function, and a relative one, are found."""
    path = tmp_path / "thing.py"
    path.write_text("def f():\n    from ..api import client\n    import testbed.cli.main\n")
    source = Source(path, "testbed.kernel.thing")
    assert list(source.imports()) == [Import("testbed.api.client", 2), Import("testbed.cli.main", 3)]
    assert upward("kernel", "api")
    assert upward("report", "scenario")
    assert upward("proxy", "dataplane")
    assert not upward("api", "kernel")
