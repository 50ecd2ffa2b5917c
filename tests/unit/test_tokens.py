"""Tokens of service accounts: of whom they are, and that only ours are believed."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.control.tokens import issue, subject

TOKEN = issue("secret", "https://kubernetes.default.svc.cluster.local", "shop", "robot", "web-0", "uid-1")


def test_a_token_says_whose_it_is_as_a_real_one_does() -> None:
    _, claims, _ = TOKEN.split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert said["sub"] == subject("secret", TOKEN) == "system:serviceaccount:shop:robot"
    assert said["kubernetes.io"]["pod"] == {"name": "web-0", "uid": "uid-1"}
    assert said["iss"] == "https://kubernetes.default.svc.cluster.local"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", TOKEN + "x", TOKEN[:-1], TOKEN.replace(".", "", 1), "a.\udcff", "\udcff.b"],
)
def test_what_is_not_signed_by_us_is_of_nobody(token: str) -> None:
    assert subject("secret", token) is None
    assert subject("other", TOKEN) is None


def test_without_a_key_nothing_is_believed() -> None:
    assert subject("", issue("", "i", "shop", "robot", "web-0", "uid-1")) is None


@given(st.text())
def test_whatever_text_is_shown_there_is_an_answer(token: str) -> None:
    assert subject("secret", token) is None
