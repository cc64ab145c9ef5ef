# ruff: noqa: SIM905 - word lists read better as running text
"""Facts with values that nobody can guess, in several surface forms. Pure Python, no torch.

A fact is a statement planted in a text. Its `lead` is the statement without its value: a text that ends in a lead has
the value as its only right continuation. Every text piece begins with a space or a newline, so pieces can be encoded
one by one and joined (byte-level BPE never merges across that border).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Digits = tuple[int, ...]  # how many digits a code may have

NAMES = (
    "Tom Lily Ben Anna Max Mia Sam Lucy Tim Sara Jack Emma Leo Zoe Bob Amy Dan Kate Sue Mark Rose Finn Ella Jim "
    "Molly Nick Daisy Joe Lola Pete Grace Bill Ruby Roy Nina Fred Jane Mike Lisa Ned May Carl Polly Hugo Tina Billy "
    "Ada Owen"
).split()
ANIMALS = (
    "cat dog bird bear rabbit fish fox frog lion mouse duck dragon monkey elephant pig horse turtle owl bee ant "
    "squirrel cow sheep tiger whale wolf crab puppy kitten spider snail deer goat hen butterfly penguin"
).split()
COLORS = ("red blue green yellow pink black white brown orange purple gray gold silver violet").split()
THINGS = (
    "ball box hat book toy kite cake apple flower stone key bell drum coat shoe cup bag rope map ring star lamp "
    "doll bike leaf shell egg nest brush candle coin spoon pen clock jar button ribbon feather whistle basket"
).split()
PLACES = (
    "garden kitchen park forest river house farm school shop tree cave castle barn boat car tower lake bed drawer "
    "field attic library hall tent bridge mill harbor market church train"
).split()


@dataclass(frozen=True)
class Fact:
    """`statement == lead + value + end`; `key` is what makes it unique within one text."""

    form: str
    key: str
    lead: str
    value: str
    end: str
    question: str

    @property
    def statement(self) -> str:
        return self.lead + self.value + self.end


def code(rng: random.Random, digits: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(digits))


def _number(rng: random.Random, digits: Digits) -> Fact:
    name, value = rng.choice(NAMES), f" {code(rng, rng.choice(digits))}"
    return Fact(
        "number", name, f" The secret number of {name} is", value, ".", f" What is the secret number of {name}?"
    )


def _key_value(rng: random.Random, digits: Digits) -> Fact:
    key = f"{rng.choice(COLORS)} {rng.choice(THINGS)}"
    value = f" {code(rng, rng.choice(digits))}"
    return Fact("key_value", key, f"\nkey {key} =", value, "", f" What is the value of key {key}?")


def _place(rng: random.Random, digits: Digits) -> Fact:
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    lead = f" {name} keeps the {thing} in the"
    return Fact("place", f"{name} {thing}", lead, f" {place}", ".", f" Where does {name} keep the {thing}?")


def _password(rng: random.Random, digits: Digits) -> Fact:
    animal = f"{rng.choice(COLORS)} {rng.choice(ANIMALS)}"
    value = f" {rng.choice(THINGS)} {rng.choice(PLACES)}"
    lead = f" The password of the {animal} is"
    return Fact("password", animal, lead, value, ".", f" What is the password of the {animal}?")


FORMS: dict[str, Callable[[random.Random, Digits], Fact]] = {
    "number": _number,
    "key_value": _key_value,
    "place": _place,
    "password": _password,
}


def draw_facts(
    rng: random.Random, count: int, forms: tuple[str, ...] = tuple(FORMS), digits: Digits = (3, 4)
) -> list[Fact]:
    """`count` facts of which no two have the same lead, so that each question has one answer."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = FORMS[rng.choice(forms)](rng, digits)
        found.setdefault(fact.lead, fact)
    return list(found.values())
