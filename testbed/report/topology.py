"""The cluster as it was at the end of the run: fabric above, nodes with their pods below, Services by
colour."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from testbed.report import svg
from testbed.report.colours import RUNS
from testbed.report.pieces import card
from testbed.report.plots import legend

WIDTH: Final = 1080.0
_ROW, _GAP, _BOX = 66.0, 14.0, 34.0
_POD, _MOST_PODS, _ABREAST = 19.0, 10, 6
_SERVICES: Final = (*RUNS, "#8a6d3b", "#7b4173", "#3b8a6d", "#5b5ea6", "#b07aa1")


def topology(about: Mapping[str, Any]) -> str:
    """The section, from a run's environment; "" where it says nothing of links."""
    cluster = about.get("cluster") or {}
    links = [(str(link[0]), str(link[2])) for link in cluster.get("links") or ()]
    objects: Mapping[str, Any] = next(iter((about.get("objects") or {}).values()), {})
    roles: Mapping[str, str] = cluster.get("hosts") or {}
    nodes = sorted((name for name, role in roles.items() if role == "node"), key=_natural)
    if not links or not nodes:
        return ""
    pods = [pod for pod in objects.get("pods") or () if pod.get("node")]
    services = [one for one in objects.get("services") or () if one.get("selector")][: len(_SERVICES)]
    colours = dict(zip((_full(one) for one in services), _SERVICES, strict=False))
    drawn = _draw(nodes, links, roles, pods, services, colours)
    named = {
        f"{_full(one)}: {one['type']} {one['ip']} {', '.join(one['ports'])}": colours[_full(one)]
        for one in services
    }
    note = (
        '<p class="note">What was run where, at the end of the run. A pod carries the colours of the '
        "Services "
        "that lead to it; point at anything for its address.</p>"
    )
    return f"<h2>The cluster</h2>{note}{legend(named)}{card(drawn)}"


def levels(nodes: Sequence[str], links: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Everything but the nodes, by its distance from the nearest node, the farthest first."""
    beside: dict[str, set[str]] = {}
    for one, other in links:
        beside.setdefault(one, set()).add(other)
        beside.setdefault(other, set()).add(one)
    far = dict.fromkeys(nodes, 0)
    queue = deque(nodes)
    while queue:
        one = queue.popleft()
        for other in sorted(beside.get(one, ())):
            if other not in far:
                far[other] = far[one] + 1
                queue.append(other)
    most = max(far.values())
    return [
        sorted((name for name, distance in far.items() if distance == level), key=_natural)
        for level in range(most, 0, -1)
    ]


def _natural(name: str) -> tuple[str, int]:
    digits = "".join(letter for letter in name if letter.isdigit())
    return name.rstrip("0123456789"), int(digits or 0)


def _full(one: Mapping[str, Any]) -> str:
    return f"{one['namespace']}/{one['name']}"


def _draw(
    nodes: Sequence[str],
    links: Sequence[tuple[str, str]],
    roles: Mapping[str, str],
    pods: Sequence[Mapping[str, Any]],
    services: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> str:
    above = levels(nodes, links)
    centres: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    y = 6.0
    for level in above:
        for place, name in enumerate(level):
            x = WIDTH * (place + 0.5) / len(level)
            centres[name] = (x, y + _BOX / 2)
            boxes.append(_host(name, str(roles.get(name, "switch")), x, y))
        y += _ROW
    abreast = min(_ABREAST, len(nodes))
    wide = (WIDTH - _GAP * (abreast - 1)) / abreast
    for row in range(0, len(nodes), abreast):
        members = nodes[row : row + abreast]
        held = {name: [pod for pod in pods if pod["node"] == name] for name in members}
        tall = 40.0 + _POD * max(1, min(_MOST_PODS + 1, max(map(len, held.values()))))
        for place, name in enumerate(members):
            x = place * (wide + _GAP)
            centres[name] = (x + wide / 2, y + 4)
            boxes += _node(name, held[name], services, colours, (x, y, wide, tall))
        y += tall + _GAP
    lines = [
        svg.element(
            "line",
            x1=centres[one][0],
            y1=centres[one][1],
            x2=centres[other][0],
            y2=centres[other][1],
            class_="wire",
        )
        for one, other in links
        if one in centres and other in centres
    ]
    return svg.figure(WIDTH, y, [*lines, *boxes], "nodes, pods, Services and links of the cluster")


def _host(name: str, role: str, x: float, y: float) -> str:
    wide = max(76.0, 7.2 * len(name) + 22)
    kind = "switch" if role == "switch" else "host"
    box = svg.element(
        "rect", x=x - wide / 2, y=y, width=wide, height=_BOX, rx=_BOX / 2 if kind == "host" else 4.0
    )
    words = svg.text(x, y + 15, name, class_="node", text_anchor="middle")
    words += svg.text(x, y + 27, role, class_="tick", text_anchor="middle")
    return svg.element("g", svg.title(f"{name} ({role})") + box + words, class_=kind)


def _node(
    name: str,
    pods: Sequence[Mapping[str, Any]],
    services: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
    place: tuple[float, float, float, float],
) -> list[str]:
    x, y, wide, tall = place
    parts = [
        svg.element("rect", x=x, y=y, width=wide, height=tall, rx=8.0, class_="nodebox"),
        svg.text(x + 12, y + 20, name, class_="node"),
        svg.text(x + wide - 12, y + 20, f"{len(pods)} pods", class_="tick", text_anchor="end"),
    ]
    for number, pod in enumerate(pods[:_MOST_PODS]):
        parts.append(_pod(pod, services, colours, x + 10, y + 30 + number * _POD, wide - 20))
    if len(pods) > _MOST_PODS:
        rest = f"and {len(pods) - _MOST_PODS} more"
        parts.append(svg.text(x + 16, y + 43 + _MOST_PODS * _POD, rest, class_="tick"))
    return parts


def _pod(
    pod: Mapping[str, Any],
    services: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
    x: float,
    y: float,
    wide: float,
) -> str:
    letters = max(4, int((wide - 50) / 6.2))
    name = str(pod["name"])
    shown = (
        name if len(name) <= letters else f"{name[: letters // 2]}…{name[-(letters - letters // 2 - 1) :]}"
    )
    behind = [one for one in services if _selects(one, pod)]
    dots = "".join(
        svg.element("circle", cx=x + wide - 9 - 11 * place, cy=y + 8, r=4.0, fill=colours[_full(one)])
        for place, one in enumerate(behind[:4])
    )
    told = f"{pod['namespace']}/{name}, {pod['ip']}, {pod['phase']}" + "".join(
        f", behind {_full(one)}" for one in behind
    )
    box = svg.element("rect", x=x, y=y, width=wide, height=_POD - 3, rx=3.0, class_="podbox")
    return svg.element(
        "g", svg.title(told) + box + svg.text(x + 7, y + 12, shown, class_="pod", font_size=11) + dots
    )


def _selects(service: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    labels = pod.get("labels") or {}
    selector = service["selector"]
    return service["namespace"] == pod["namespace"] and all(
        labels.get(key) == value for key, value in selector.items()
    )
