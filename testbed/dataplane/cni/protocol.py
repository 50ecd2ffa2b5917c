"""The Container Network Interface as JSON: configurations, what a plugin reads and answers, what is kept.

Pure: nothing here runs anything. Sources: the CNI specification 1.1.0 (``SPEC.md``), ``CONVENTIONS.md`` and
libcni 1.1 (``libcni/api.go``, ``pkg/types``, ``pkg/invoke``), whose words errors are told in.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, Literal

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification that are spoken here, oldest first."""

Operation = Literal["ADD", "CHECK", "DEL", "STATUS", "GC", "VERSION"]

ATTACHMENTS = "cni.dev/valid-attachments"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_PLACEHOLDER = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")

MAX_BYTES = 1 << 20
"""Of what a plugin may answer."""

MOST_QUOTED = 4096
"""Bytes of what a failed plugin said that are repeated; libcni repeats it all."""


@dataclass(frozen=True)
class NetworkList:
    """A network configuration list. versions: those it may be used with, oldest first; source: as given."""

    name: str
    versions: tuple[str, ...]
    plugins: tuple[Mapping[str, Any], ...]
    source: str
    disable_check: bool = False
    disable_gc: bool = False

    def declares(self, capability: str) -> bool:
        """Whether a plugin of it takes this from the runtime."""
        return any((plugin.get("capabilities") or {}).get(capability) is True for plugin in self.plugins)


@dataclass(frozen=True)
class Attachment:
    """What an operation is about: one container's interface. args: of CNI_ARGS, in order; capabilities: what
    the runtime has to offer by capability; netns: a path, "" where there is none any more."""

    container: str
    netns: str
    ifname: str
    args: tuple[tuple[str, str], ...] = ()
    capabilities: Mapping[str, Any] | None = None


def parse(given: Any) -> NetworkList:
    """A network configuration list, as JSON text or read already. Raises ValueError."""
    if isinstance(given, str):
        try:
            given = _read(given)
        except ValueError as error:
            raise ValueError(f"must be a CNI network configuration list in JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError("must be a CNI network configuration list, a mapping")
    name, plugins = given.get("name"), given.get("plugins")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("name must begin with a letter or digit, and hold only these, _, . and -")
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("plugins must be a list of at least one plugin's configuration")
    for number, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ValueError(f"plugins[{number}].type must be the name of a plugin's program")
        if not isinstance(plugin.get("capabilities") or {}, dict):
            raise ValueError(f'plugins[{number}].capabilities must be a mapping such as {{"mac": true}}')
    return NetworkList(
        name,
        _versions(given),
        tuple(plugins),
        json.dumps(given),
        disable_check=given.get("disableCheck") in (True, "true"),
        disable_gc=given.get("disableGC") in (True, "true"),
    )


def _versions(given: Mapping[str, Any]) -> tuple[str, ...]:
    listed = given.get("cniVersions") or []
    if not isinstance(listed, list):
        raise ValueError("cniVersions must be a list of versions")
    asked = [*listed, given["cniVersion"]] if "cniVersion" in given else list(listed)
    if not asked:
        asked = ["0.1.0"]  # the specification: an absent version is 0.1.0
    known = tuple(version for version in VERSIONS if version in asked)
    if not known:
        raise ValueError(f"cniVersion {', '.join(map(str, asked))}: known are {', '.join(VERSIONS)}")
    return known


def fill(source: str, values: Mapping[str, str]) -> str:
    """A configuration in which ``{{.PodCIDR}}`` and the like are filled in. Raises ValueError."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ValueError(f"{found[0]}: known are {', '.join(f'{{{{.{name}}}}}' for name in values)}")
        return json.dumps(values[found[1]])[1:-1]

    return _PLACEHOLDER.sub(value, source)


def negotiate(network: NetworkList, supported: Iterable[Sequence[str]]) -> str:
    """The newest version that the list may be used with and every plugin supports; else the list's newest,
    which plugins then refuse. supported: what each plugin said to VERSION."""
    sets = [set(each) for each in supported]
    both = [version for version in network.versions if all(version in each for each in sets)]
    return (both or network.versions)[-1]


# --- what a plugin is given -----------------------------------------------------------------------------


def environment(operation: Operation, attachment: Attachment | None, path: Sequence[str]) -> dict[str, str]:
    """The CNI variables of a plugin's environment."""
    env = {"CNI_COMMAND": operation, "CNI_PATH": ":".join(path)}
    if attachment is not None:
        env |= {
            "CNI_CONTAINERID": attachment.container,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": attachment.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
        }
    return env


def stdin(
    network: NetworkList,
    plugin: Mapping[str, Any],
    version: str,
    capabilities: Mapping[str, Any] | None = None,
    previous: Mapping[str, Any] | None = None,
    valid: Sequence[tuple[str, str]] | None = None,
) -> str:
    """What a plugin reads: its configuration with the list's name and version, what the runtime has of the
    capabilities it declares, the result so far, and for GC the (container id, ifname) still there."""
    config = {
        key: value
        for key, value in plugin.items()
        if key not in ("capabilities", "runtimeConfig") and not key.startswith("cni.dev/")
    }
    config |= {"name": network.name, "cniVersion": version}
    declared = plugin.get("capabilities") or {}
    runtime = {key: value for key, value in (capabilities or {}).items() if declared.get(key) is True}
    if runtime:
        config["runtimeConfig"] = runtime
    if previous is not None:
        config["prevResult"] = previous
    if valid is not None:
        config[ATTACHMENTS] = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    return json.dumps(config)


# --- what a plugin answers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A plugin's error. code: the specification's, 0 where it gave none."""

    code: int
    text: str


def failure(stdout: bytes, stderr: bytes, how: str) -> Failure:
    """What libcni makes of a plugin that failed. how: the way it ended, ``exit status 1``.

    Source: ``pkg/invoke/raw_exec.go`` (pluginErr), ``pkg/types/types.go`` (Error).
    """
    if not stdout:
        if not stderr:
            return Failure(0, f"netplugin failed with no error message: {how}")
        return Failure(0, f'netplugin failed: "{_go_quoted(stderr)}"')
    try:
        error = _read(stdout)
        if not isinstance(error, dict):
            raise ValueError("not an error object")
    except ValueError as problem:
        said = _go_quoted(stdout)
        return Failure(0, f'netplugin failed but error parsing its diagnostic message "{said}": {problem}')
    code, details = error.get("code", 0), error.get("details", "")
    text = str(error.get("msg", ""))
    text = f"{text}; {details}" if details else text
    # Half a surrogate pair is JSON, but nothing that can be told.
    return Failure(code if isinstance(code, int) else 0, text.encode(errors="replace").decode())


def _read(said: bytes | str) -> Any:
    """JSON that somebody wrote. Raises ValueError."""
    if not said.strip():
        raise ValueError("unexpected end of JSON input")
    try:
        return json.loads(said)
    except RecursionError:
        raise ValueError("exceeded max depth") from None


def _go_quoted(said: bytes) -> str:
    """As Go quotes it, and no more of it than an event can show."""
    cut = "…" if len(said) > MOST_QUOTED else ""
    return json.dumps(said[:MOST_QUOTED].decode(errors="replace"))[1:-1] + cut


def result(stdout: bytes, version: str) -> dict[str, Any]:
    """A result as a plugin printed it; one without a version has the configuration's. Raises ValueError."""
    if len(stdout) > MAX_BYTES:
        raise ValueError(f"the result has more than {MAX_BYTES} bytes")
    try:
        found = _read(stdout)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except ValueError as problem:
        said = f' "{_go_quoted(stdout)}"' if stdout else ""
        raise ValueError(f"failed to unmarshal raw result{said}: {problem}") from problem
    return {"cniVersion": version} | found


def supported(stdout: bytes) -> tuple[str, ...]:
    """The versions that a plugin supports, as it printed them for VERSION. Raises ValueError."""
    said = _read(stdout)
    versions = said.get("supportedVersions") if isinstance(said, dict) else None
    if not isinstance(versions, list):
        raise ValueError("no list of supportedVersions")
    return tuple(each for each in versions if isinstance(each, str))


def addresses(found: Mapping[str, Any], ifname: str) -> tuple[str, ...]:
    """The container's addresses in a result, one per family, IPv4 first, no lengths. Raises ValueError."""
    try:
        texts = _address_texts(found, ifname)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the result is not of the specification's form: {error}") from error
    by_family: dict[int, str] = {}
    for text in texts:
        interface_ = ip_interface(text)
        by_family.setdefault(interface_.version, str(interface_.ip))
    return tuple(by_family[version] for version in sorted(by_family))


def _address_texts(found: Mapping[str, Any], ifname: str) -> list[str]:
    texts: list[str] = []
    for old in ("ip4", "ip6"):  # before 0.3.0
        if isinstance(found.get(old), dict):
            texts.append(str(found[old].get("ip")))
    interfaces = found.get("interfaces") or []
    for entry in found.get("ips") or []:
        number = entry.get("interface")
        if number is not None and 0 <= number < len(interfaces):
            interface = interfaces[number]
            if not interface.get("sandbox") or interface.get("name") != ifname:
                continue
        texts.append(str(entry.get("address")))
    return texts


def described(plugin: Mapping[str, Any], network: NetworkList) -> str:
    """How libcni names a plugin in an error."""
    return f'plugin type="{plugin["type"]}" name="{network.name}"'


# --- what is kept between operations --------------------------------------------------------------------


def cache_name(network: NetworkList, attachment: Attachment) -> str:
    """The file of an attachment below ``results``."""
    return f"{network.name}-{attachment.container}-{attachment.ifname}"


def cache_text(network: NetworkList, attachment: Attachment, found: Mapping[str, Any]) -> str:
    """What libcni keeps of an attachment. Source: ``libcni/api.go`` (cachedInfo)."""
    kept: dict[str, Any] = {
        "kind": "cniCacheV1",
        "containerId": attachment.container,
        "config": base64.b64encode(network.source.encode()).decode(),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": attachment.netns,
        "cniArgs": [list(pair) for pair in attachment.args],
        "capabilityArgs": dict(attachment.capabilities or {}),
        "result": dict(found),
    }
    return json.dumps({key: value for key, value in kept.items() if value})
