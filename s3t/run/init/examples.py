"""Examples to try: data that are made here, and configs that ship with the package.

    digits   scikit-learn's digits, with the config configs/digits.yaml
    texts    messages of invented customers, in four topics: a csv file
    chat     the same messages with an answer each: conversations as JSON lines
    hub/…    configs for models and data sets of the hub

Invariant: the same name gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from s3t.errors import InputError, named

__all__ = ["example_data", "example_names", "shipped_config"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""Complete configs, as they ship."""

CUSTOMERS = 120

TOPICS: Mapping[str, tuple[str, str]] = {
    "delivery": (
        "my parcel is late; the package got lost; the courier never came; the box is damaged; "
        "where is my order; it went to the wrong address",
        "We are sorry. We ask the courier today and write to you tomorrow.",
    ),
    "billing": (
        "I was charged twice; the invoice is wrong; I want my money back; the discount is missing; "
        "please send the receipt again; my card was refused",
        "Thank you. We check the invoice and pay back what is too much.",
    ),
    "account": (
        "I forgot my password; I cannot log in; please change my email; I am locked out; "
        "delete my account; the code does not arrive",
        "We have sent you a link with which you can set it again.",
    ),
    "product": (
        "the screen stays black; it makes a loud noise; a part is missing; it does not charge; "
        "the manual is in the wrong language; the colour is not as shown",
        "Please send us a photo. We replace it free of charge.",
    ),
}
"""Phrases of each topic, and the answer to it."""

OPENINGS = ("Hello, ", "Hi, ", "Dear team, ", "Good morning, ", "Again: ", "")
CLOSINGS = (" Thanks.", " Please help.", " What can I do?", " It is urgent.", "", "")


def example_names() -> list[str]:
    """Names of all examples."""
    shipped = sorted(path.stem for path in (CONFIGS / "hub").glob("*.yaml"))
    return ["digits", "texts", "chat", *(f"hub/{name}" for name in shipped)]


def shipped_config(name: str) -> str | None:
    """The text of a config that ships; None for an example with data of its own.

    Raises:
        InputError: there is no such example.
    """
    if name not in example_names():
        raise InputError(f"no example {name!r}: use one of {named(example_names(), 20)}")
    path = CONFIGS / f"{name}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def example_data(name: str) -> tuple[str, str]:
    """File name and content of the data of ``texts`` or ``chat``."""
    if name == "chat":
        return "conversations.jsonl", "".join(json.dumps(row) + "\n" for row in _chats())
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["id", "customer", "message", "topic"])
    writer.writerows(_messages())
    return "customers.csv", stream.getvalue()


def _messages() -> Iterator[tuple[str, str, str, str]]:
    """Id, customer, message and topic; three to nine messages of each customer."""
    draw = random.Random(7)
    number = 0
    for customer in range(1, CUSTOMERS + 1):
        for _ in range(draw.randint(3, 9)):
            number += 1
            topic = draw.choice(list(TOPICS))
            phrase = draw.choice(TOPICS[topic][0].split("; "))
            order = f" (order {draw.randint(10_000, 99_999)})"
            message = f"{draw.choice(OPENINGS)}{phrase}{order}.{draw.choice(CLOSINGS)}"
            yield f"m{number:04d}", f"c{customer:03d}", message, topic


def _chats() -> Iterator[dict[str, object]]:
    for number, customer, message, topic in _messages():
        turns = [
            {"role": "user", "content": message},
            {"role": "assistant", "content": TOPICS[topic][1]},
        ]
        yield {"id": number, "customer": customer, "messages": turns}
