"""What the model card says, measured with transformers: recall by distance, words, held-out loss, samples."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lantern.corpus import Corpus
from lantern.tasks import sentences
from lantern.tokenizer import ASSISTANT, BOS, END, EOS, USER
from pagoda.bench.quality.copying import copy_case
from pagoda.bench.quality.counting import count_back_case, reverse_case
from pagoda.bench.quality.facts import FORMS
from pagoda.bench.quality.recall import RecallCase, Wrap, recall_case, without_past

CONTEXT = 2048
CUT_WINDOW = 96  # tokens that remain when the distant context is cut off: the question and what stands before it
WRAPS = {"text": Wrap((BOS,)), "chat": Wrap((BOS, USER), (END, ASSISTANT))}
MAKERS = {"copy": copy_case, "count_back": count_back_case, "reverse": reverse_case}
SAMPLE_PROMPTS = ["Once upon a time", "One day, a little rabbit named Tom", "Lily and her dog went to the"]


class Subject:
    """A model, its tokenizer and the texts it never saw."""

    def __init__(self, model: Any, tokenizer: Any, corpus: Corpus) -> None:
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.filler = [self.encode(s) for text in corpus.held_stories + corpus.held_real for s in sentences(text)]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @torch.inference_mode()
    def exact(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> bool:
        """Greedy decoding gives the answer exactly if and only if it is the argmax at every one of its tokens."""
        ids = torch.tensor([[*prompt, *answer]], device=self.model.device)
        logits = self.model(ids[:, :-1], logits_to_keep=len(answer)).logits
        return logits[0].argmax(-1).tolist() == list(answer)

    def case(self, seed: int, distance: int, form: str, wrap: Wrap, kind: str) -> RecallCase:
        """Depth varies with the seed as far as the context allows."""
        room = CONTEXT - distance - 48
        return recall_case(
            seed,
            self.encode,
            self.filler,
            distance=distance,
            depth=8 + seed * 37 % min(room, 400),
            distractors=3,
            forms=(form,),
            wrap=wrap,
            ask=kind == "chat",
        )

    def recall(self, distance: int, cases: int) -> dict[str, float]:
        """Share of planted values given back exactly, with the whole context and with the distant part cut off."""
        found: dict[str, float] = {}
        whole, cut = [], []
        for kind, wrap in WRAPS.items():
            for form in FORMS:
                hits = []
                for seed in range(cases):
                    case = self.case(seed + 1000 * distance, distance, form, wrap, kind)
                    hits.append(self.exact(case.prompt_ids, case.answer_ids))
                    cut.append(self.exact(without_past(case, CUT_WINDOW, len(wrap.head)), case.answer_ids))
                found[f"{kind}_{form}"] = round(sum(hits) / cases, 4)
                whole += hits
        found["exact_match"] = round(sum(whole) / len(whole), 4)
        found["exact_match_cut_off"] = round(sum(cut) / len(cut), 4)
        found["cases"] = len(whole)
        return found

    def free_answers(self, distance: int, cases: int) -> float:
        """Chat questions answered in the model's own words; right if the value is the last thing said."""
        hits = 0
        for seed in range(cases):
            form = list(FORMS)[seed % len(FORMS)]
            case = self.case(seed + 7000 * distance, distance, form, WRAPS["chat"], "chat")
            lead = len(self.encode(case.fact.lead.lstrip()))
            text = self.generate(list(case.prompt_ids[: len(case.prompt_ids) - lead]), 32)
            hits += text.rstrip(". ").endswith(case.answer)
        return round(hits / cases, 4)

    def words(self, task: str, count: int, cases: int) -> float:
        hits = 0
        for seed in range(cases):
            case = MAKERS[task](seed, count)
            hits += self.exact((BOS, *self.encode(case.prompt)), tuple(self.encode(case.answer)))
        return round(hits / cases, 4)

    @torch.inference_mode()
    def held_out(self) -> dict[str, dict[str, float]]:
        sets = {
            "sampled_stories": self.corpus.held_stories,
            "tinystories": self.corpus.held_real,
            "books": self.corpus.held_books[:25],
            # Not held out: what the model has read, to show how much of it is memory.
            "seen_sampled_stories": self.corpus.stories[:48],
            "seen_tinystories": self.corpus.real[:20],
        }
        found = {}
        for name, texts in sets.items():
            nats = tokens = size = 0.0
            for text in texts:
                ids = torch.tensor([[BOS, *self.encode(text)][:CONTEXT]], device=self.model.device)
                logits = self.model(ids[:, :-1]).logits[0]
                nats += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
                tokens += ids.shape[1] - 1
                size += len(text.encode())
            found[name] = {
                "nats_per_token": round(nats / tokens, 4),
                "perplexity": round(math.exp(nats / tokens), 3),
                "nats_per_byte": round(nats / size, 4),
                "tokens": int(tokens),
            }
        return found

    @torch.inference_mode()
    def generate(self, ids: list[int], count: int, temperature: float = 0.0, seed: int = 0) -> str:
        torch.manual_seed(seed)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": 0.9} if temperature else {"do_sample": False}
        )
        prompt = torch.tensor([ids], device=self.model.device)
        out = self.model.generate(prompt, max_new_tokens=count, eos_token_id=[EOS, END], **sampling)
        return self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)

    def samples(self) -> dict[str, Any]:
        stories = [p + self.generate([BOS, *self.encode(p)], 220) for p in SAMPLE_PROMPTS]
        stories += [p + self.generate([BOS, *self.encode(p)], 220, 0.6, 1) for p in SAMPLE_PROMPTS[:2]]
        chat: list[dict[str, str]] = []
        for question in (
            "The secret number of Tom is 4821. Lily keeps the lamp in the barn.",
            "Tell me a story about a cat.",
            "What is the secret number of Tom?",
            "Where does Lily keep the lamp?",
        ):
            chat.append({"role": "user", "content": question})
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            chat.append({"role": "assistant", "content": self.generate(self.encode(text), 260)})
        return {"stories": stories, "chat": chat}
