"""What every part of a report is made of: cards and tables, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def card(content: str, attributes: str = "") -> str:
    """A card around HTML."""
    return f'<div class="card" {attributes}>{content}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; a head that ends in ``#`` is a column of numbers."""
    classes = [' class="n"' if head.endswith("#") else "" for head in heads]
    top = "".join(
        f"<th{kind}>{escape(head.rstrip('#'))}</th>" for head, kind in zip(heads, classes, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
