"""The part of a report on commands: each as it was typed, with what it printed."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from testbed.records import Event
from testbed.report.pieces import card

COMMAND = "command"
"""What an event of a command is called."""


def commands(events: Iterable[Event]) -> str:
    """The section, a card per command in the order they were run; "" where there were none."""
    cards = []
    for number, one in enumerate((event for event in events if event.what == COMMAND), 1):
        detail = one.detail
        named = str(detail.get("title") or detail["line"])
        title = escape(f"{detail['variant']}: {named}" if detail.get("variant") else named)
        say = f'<p class="note">{escape(str(detail["say"]))}</p>' if detail.get("say") else ""
        typed = f'<span class="typed">$ {escape(str(detail["line"]))}</span>'
        printed = escape(str(detail["output"]).rstrip())
        shown = f"<pre>{typed}\n{printed}</pre>" if printed else f"<pre>{typed}</pre>"
        cards.append(card(f"<h3>{number}. {title}</h3>{say}{shown}", 'style="margin-top:14px"'))
    return "<h2>Step by step</h2>" + "".join(cards) if cards else ""
