"""Training sequences: stories, chats, recall at every distance, copying, counting; token ids with a weight each.

A weight of 0 is for tokens nobody could know (the value of a fact when it is first told), 1 for language, `ANSWER` for
tokens that an attentive reader must get right. Every sequence is made from its own seed, so the data position of a
stopped run is one number.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from lantern.corpus import Corpus
from lantern.tokenizer import ASSISTANT, BOS, END, EOS, SPECIALS, SYSTEM, USER
from lantern.words import HEROES, THINGS
from pagoda.bench.quality.copying import copy_case
from pagoda.bench.quality.counting import count_back_case, reverse_case
from pagoda.bench.quality.facts import FORMS, Fact, draw_facts

ANSWER = 5.0
FORMULA = 0.3  # the known words of a fact or question: easy, many, and not to drown the rest
TRAIN_DIGITS = (1, 2, 3, 4, 4)  # short codes are learned first and carry the longer ones
ACKNOWLEDGED = "OK, I will remember that."
SYSTEM_TEXTS = ("You are lantern, a small model that tells stories and remembers facts.", "You tell short stories.")


@dataclass
class Sequence:
    """Ids and the weight of predicting each of them; `answers` marks the tokens that count as recall."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: list[int], weight: float = 1.0) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


class TaskMix:
    """Builds sequences of one length; `shares` maps a builder's name to how often it is drawn."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, real_share: float = 0.2) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.corpus = corpus
        self.real_share = real_share
        self.stories = self._encode_all(corpus.stories)
        self.real = self._encode_all(corpus.real)
        self.books = self._encode_all(corpus.books)
        self.sentences = [self._encode_all(sentences(s)) for s in corpus.stories[:4000] + corpus.real]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def build(self, seed: int, length: int, shares: dict[str, float], filler: tuple[float, float]) -> Sequence:
        """One sequence of `length + 1` ids (inputs and targets overlap)."""
        rng = random.Random(seed)
        name = rng.choices(list(shares), list(shares.values()))[0]
        seq = Sequence([BOS], [0.0])
        if name in ("recall", "chat_recall"):
            getattr(self, name)(rng, seq, length + 1, rng.uniform(*filler))
        else:
            while len(seq) <= length:
                getattr(self, name)(rng, seq, length)
        return Sequence(seq.ids[: length + 1], seq.weights[: length + 1])

    # language

    def story(self, rng: random.Random, seq: Sequence, length: int) -> None:
        real = rng.random() < self.real_share
        seq.add([*rng.choice(self.real if real else self.stories), EOS, BOS])

    def book(self, rng: random.Random, seq: Sequence, length: int) -> None:
        seq.add([*rng.choice(self.books), EOS, BOS])

    def chat_story(self, rng: random.Random, seq: Sequence, length: int) -> None:
        if rng.random() < 0.2:
            seq.add([SYSTEM, *self.encode(rng.choice(SYSTEM_TEXTS)), END], 0.1)
        self._story_turn(rng, seq)
        if rng.random() < 0.7:
            seq.add([BOS])

    def _story_turn(self, rng: random.Random, seq: Sequence) -> None:
        """A request that names something of the story, found in the story itself."""
        real = rng.random() < self.real_share
        texts, encoded = (self.corpus.real, self.real) if real else (self.corpus.stories, self.stories)
        at = rng.randrange(len(texts))
        words = set(re.findall(r"[a-z]+", texts[at].lower()))
        topics = [w for w in HEROES + THINGS if w in words]
        article = lambda w: "an" if w[0] in "aeiou" else "a"  # noqa: E731
        ask = rng.choice(["Tell me a story", "Please tell me a story", "Can you tell me a story", "Write a story"])
        if topics and rng.random() < 0.8:
            topic = rng.choice(topics)
            ask += f" about {article(topic)} {topic}"
        seq.add([USER, *self.encode(ask + ("?" if ask.startswith("Can") else ".")), END], 0.1)
        seq.add([ASSISTANT], 0.1)
        seq.add([*encoded[at], END])

    # recall

    def recall(self, rng: random.Random, seq: Sequence, length: int, filler_share: float) -> None:
        """Plain text: facts among filler, then leads (with or without a question) to complete."""
        facts, asked = self._plan(rng, length, filler_share)
        known: list[Fact] = []
        filler = int(filler_share * length)
        slots = len(facts) + asked
        # Where facts may stand: everywhere, or only at the front, so that most distances are long.
        front = rng.random() < 0.6
        last_fact = rng.uniform(0.1, 0.4) if front else 0.9
        while len(seq) < length:
            place = len(seq) / length
            if facts and (not known or (place < last_fact and rng.random() < 0.7)):
                fact = facts.pop()
                known.append(fact)
                self._tell(seq, fact)
            else:
                if place >= last_fact:
                    facts.clear()
                fact = known[0] if rng.random() < 0.15 else rng.choice(known)
                if rng.random() < 0.3:
                    seq.add(self.encode(fact.question), FORMULA)
                self._answer(seq, fact, first=False)
            if filler:
                self._fill(rng, seq, rng.expovariate(slots / filler))

    def chat_recall(self, rng: random.Random, seq: Sequence, length: int, filler_share: float) -> None:
        """Turns: facts and filler with a question, a question alone, facts alone, a story asked for."""
        facts, asked = self._plan(rng, length, filler_share)
        known: list[Fact] = []
        filler = int(filler_share * length)
        per_turn = filler / max(1, asked)
        last_fact = rng.uniform(0.1, 0.4) if rng.random() < 0.6 else 0.9
        if rng.random() < 0.2:
            seq.add([SYSTEM, *self.encode(rng.choice(SYSTEM_TEXTS)), END], 0.1)
        while len(seq) < length:
            place = len(seq) / length
            if known and filler_share > 0.2 and rng.random() < 0.15:
                self._story_turn(rng, seq)
                continue
            seq.add([USER], 0.1)
            start = len(seq)
            told = 0
            if facts and (not known or place < last_fact):
                for _ in range(min(len(facts), rng.randint(1, max(1, len(facts))))):
                    known.append(facts.pop())
                    self._tell(seq, known[-1], first=len(seq) == start)
                    told += 1
                    if filler and rng.random() < 0.7:
                        self._fill(rng, seq, rng.expovariate(1 / (per_turn + 1)))
            elif filler and rng.random() < 0.6:
                self._fill(rng, seq, rng.expovariate(0.6 / per_turn), first=True)
            if told and rng.random() < 0.25:
                seq.add([END], 0.1)
                seq.add([ASSISTANT, *self.encode(ACKNOWLEDGED), END], FORMULA)
                continue
            fact = known[0] if rng.random() < 0.15 else rng.choice(known)
            question = fact.question if len(seq) > start else fact.question.lstrip()
            seq.add([*self.encode(question), END], FORMULA)
            seq.add([ASSISTANT], 0.1)
            self._answer(seq, fact, first=True)
            seq.add([END])

    def _plan(self, rng: random.Random, length: int, filler_share: float) -> tuple[list[Fact], int]:
        """Facts to tell and an estimate of the questions that will fit (13 and 14 tokens each, measured)."""
        room = (1 - filler_share) * length
        told = max(2, int(room * rng.uniform(0.15, 0.45) / 13))
        forms = tuple(rng.sample(list(FORMS), rng.choice([1, 2, len(FORMS)])))
        return draw_facts(rng, min(told, 24), forms, TRAIN_DIGITS), max(1, int(room / 14) - told)

    def _tell(self, seq: Sequence, fact: Fact, first: bool = False) -> None:
        seq.add(self.encode(fact.lead.lstrip() if first else fact.lead), FORMULA)
        seq.add(self.encode(fact.value), 0.0)
        seq.add(self.encode(fact.end), FORMULA)

    def _answer(self, seq: Sequence, fact: Fact, first: bool) -> None:
        seq.add(self.encode(fact.lead.lstrip() if first else fact.lead), 1.0 if first else FORMULA)
        seq.add(self.encode(fact.value), ANSWER)
        seq.add(self.encode(fact.end))

    def _fill(self, rng: random.Random, seq: Sequence, count: float, first: bool = False) -> None:
        """About `count` tokens of one story's sentences; a third of the time the last is cut in the middle."""
        count = int(count)
        story = rng.choice(self.sentences)
        at = rng.randrange(len(story)) if rng.random() < 0.5 else 0
        for sentence in story[at:]:
            if count <= 0:
                return
            take = sentence[:count] if len(sentence) > count and rng.random() < 0.33 else sentence
            seq.add(take)
            count -= len(sentence)
        if count > 0:
            self._fill(rng, seq, count)

    # copying and counting

    def copy(self, rng: random.Random, seq: Sequence, length: int) -> None:
        case = copy_case(rng.getrandbits(48), rng.randint(3, 24))
        seq.add(self.encode((" " if len(seq) > 1 else "") + case.prompt), 0.02)
        seq.add(self.encode(case.answer), ANSWER / 2)

    def repeat(self, rng: random.Random, seq: Sequence, length: int) -> None:
        """Random ids said twice: the shortest way to induction heads, used in the first phases only."""
        ids = [rng.randrange(len(SPECIALS), self.vocab_size) for _ in range(rng.randint(8, max(9, length // 3)))]
        seq.add(ids, 0.0)
        seq.add(ids[:1], 0.0)
        seq.add(ids[1:], 1.0)

    def count(self, rng: random.Random, seq: Sequence, length: int) -> None:
        make = rng.choice([count_back_case, reverse_case])
        case = make(rng.getrandbits(48), rng.randint(3, 12))
        seq.add(self.encode((" " if len(seq) > 1 else "") + case.prompt), 0.05)
        seq.add(self.encode(case.answer), ANSWER / 2)
        if make is count_back_case:
            seq.add(self.encode("."))


def task_texts(seed: int, count: int = 3000) -> list[str]:
    """Text of the tasks, so that the tokenizer learns their words too."""
    rng = random.Random(seed)
    facts = [fact for _ in range(count) for fact in draw_facts(rng, 1)]
    return [f.statement + f.question for f in facts] + [copy_case(i, 8).prompt for i in range(count // 4)]


def sentences(story: str) -> list[str]:
    """Sentences with a leading space; paragraphs become running text."""
    flat = re.sub(r"\s+", " ", story).strip()
    return [" " + s for s in re.split(r'(?<=[.!?]) (?=[A-Z"])|(?<=[.!?]") (?=[A-Z])', flat) if s]
