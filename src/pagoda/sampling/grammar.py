"""From `Structured` to the tokens that may come next. The only user of llguidance (https://github.com/guidance-ai).

    Structured ── GrammarCompiler.compile ──► Grammar ── start ──► GrammarState, one a sequence:  mask, accept, fork

A state is a parser over bytes beside the vocabulary's trie: at each position it knows every token whose bytes can
continue the text. It moves only by ``accept``, so it survives preemption: nothing of it depends on KV.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from pagoda.core.errors import RequestError

from .structured import Structured

if TYPE_CHECKING:
    import llguidance

_WHITESPACE = r"( |\r?\n[ \t]{0,32})"
_QUOTED = re.compile(r"\s*(\d+ \||\^+$)")
_MAX_CACHED = 16


class GrammarState:
    """One sequence's place in its grammar."""

    __slots__ = ("_mask", "_matcher", "_pending", "_trie", "num_words")

    def __init__(self, matcher: llguidance.LLMatcher, trie: _Trie) -> None:
        """``num_words`` 32-bit words hold a mask over the vocabulary of ``trie``."""
        self._matcher, self._trie, self.num_words = matcher, trie, -(-trie.tokenizer.vocab_size // 32)
        self._mask: np.ndarray | None = None
        self._pending: tuple[Future[None], np.ndarray] | None = None

    @property
    def error(self) -> str | None:
        """Why no token can be said to be allowed any more (the grammar became too ambiguous), or None."""
        self._settle()
        return _line(self._matcher.get_error()) if self._matcher.is_error() else None

    @property
    def is_complete(self) -> bool:
        """Whether the text is a whole answer and nothing can follow it."""
        self._settle()
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the text is a whole answer, so that the end of sequence is allowed here."""
        self._settle()
        return self._matcher.is_accepting()

    def can_go_on(self, end_ids: Sequence[int]) -> bool:
        """Whether a token other than these is allowed next."""
        bits = np.unpackbits(self.mask(), bitorder="little")
        ends = [token_id for token_id in end_ids if token_id < len(bits)]
        return int(bits.sum()) > int(bits[ends].sum())

    def accept(self, token_id: int) -> None:
        """The token is now part of the answer."""
        self._settle()
        self._mask = None
        self._matcher.consume_token(token_id)

    def fork(self) -> GrammarState:
        """An independent copy, for a sequence that goes on from here."""
        self._settle()
        twin = GrammarState(self._matcher.deep_copy(), self._trie)
        twin._mask = self._mask  # never written once it is there
        return twin

    def mask(self) -> np.ndarray:
        """Bits of the allowed tokens, uint8 [bytes], lowest bit first: computed ahead, or now."""
        self._settle()
        if self._mask is None:
            self._mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return self._mask

    @property
    def needs_mask(self) -> bool:
        return self._mask is None and self._pending is None and not self._matcher.is_error()

    def expect(self, done: Future[None], row: np.ndarray) -> None:
        """Another thread computes the mask into ``row``; whoever asks the state next waits until it is ``done``."""
        self._pending = (done, row)

    @property
    def matcher(self) -> llguidance.LLMatcher:
        """For `masks.MaskAhead`; not to be touched while a mask is expected."""
        return self._matcher

    def _settle(self) -> None:
        if self._pending is not None:
            (done, row), self._pending = self._pending, None
            done.result()
            self._mask = row


class Grammar:
    """A compiled form. Safe to start from several threads."""

    __slots__ = ("_matcher", "_trie")

    def __init__(self, matcher: llguidance.LLMatcher, trie: _Trie) -> None:
        self._matcher, self._trie = matcher, trie

    def start(self) -> GrammarState:
        """The state before the first token."""
        return GrammarState(self._matcher.deep_copy(), self._trie)


class GrammarCompiler:
    """One model's. The trie is built at the first compilation: half a second for 50,000 tokens.

    ``tokens`` returns the bytes of every token; ``special_ids`` are never part of a text; ``encode`` tokenizes it;
    ``heap_bytes`` measures what the trie took (``trie_bytes``).
    """

    def __init__(
        self,
        tokens: Callable[[], Sequence[bytes]],
        *,
        eos_ids: Sequence[int],
        special_ids: Iterable[int],
        encode: Callable[[str], list[int]],
        heap_bytes: Callable[[], int] = lambda: 0,
        switched_off: bool = False,
    ) -> None:
        self._tokens, self._encode, self._heap_bytes, self._switched_off = tokens, encode, heap_bytes, switched_off
        self.trie_bytes = 0
        self._eos_ids, self._special_ids = list(eos_ids), sorted({*special_ids, *eos_ids})
        self._lock = threading.Lock()
        self._trie: _Trie | None = None
        self._cache: OrderedDict[Structured, Grammar] = OrderedDict()

    def compile(self, structured: Structured) -> Grammar:
        """May be called from several threads; takes up to seconds without holding up others (the GIL is let go).

        Raises RequestError naming the part that cannot be enforced.
        """
        if self._switched_off:
            raise RequestError("structured output is switched off here (structured_output=False); leave structured out")
        with self._lock:
            if structured in self._cache:
                self._cache.move_to_end(structured)
                return self._cache[structured]
            trie = self._built_trie()
        grammar = Grammar(_matcher(trie.tokenizer, structured), trie)
        with self._lock:
            self._cache[structured] = grammar
            while len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _built_trie(self) -> _Trie:
        if self._trie is None:
            if not self._eos_ids:
                raise RequestError("structured: this model names no end-of-sequence token, so no structure could end")
            before = self._heap_bytes()
            source = _TokenSource(list(self._tokens()), self._eos_ids[0], self._special_ids, self._encode)
            self._trie = _Trie(source, self._eos_ids)
            self.trie_bytes = max(0, self._heap_bytes() - before)
        return self._trie


class _Trie:
    """The vocabulary as the library has it, for as long as something refers to this.

    The library's object and its source refer to each other, which Python's collector cannot see: the end of this one
    parts them. Otherwise no trie would ever be freed (400 bytes a token of the vocabulary).
    """

    def __init__(self, source: _TokenSource, eos_ids: list[int]) -> None:
        import llguidance

        wrapper = llguidance.TokenizerWrapper(source)
        self.tokenizer = source.trie = llguidance.LLTokenizer(wrapper, eos_token=eos_ids)
        wrapper.tokens = source.tokens = []  # the trie has them now
        self._source = source

    def __del__(self) -> None:
        if hasattr(self, "_source"):
            self._source.trie = None


class _TokenSource:
    """What llguidance reads a vocabulary from, and asks how text is tokenized where the grammar forces it.

    Tokenized as in the middle of a text (SentencePiece puts a space before what it takes for a beginning), and never
    into special tokens. Where the tokenizer does not give back the same bytes, the longest tokens that fit do.
    """

    _MARK = "\x02"

    def __init__(
        self, tokens: list[bytes], eos_id: int, special_ids: list[int], encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens, self.special_token_ids = tokens, special_ids
        self.eos_token_id, self.bos_token_id = eos_id, None
        self._encode, self._special = encode, frozenset(special_ids)
        self._mark_ids = encode(self._MARK)
        self.trie: llguidance.LLTokenizer | None = None

    def __call__(self, text: str) -> list[int]:
        if self.trie is None:  # the library asks once for a sample, before there is a trie
            return self._encode(text)
        marked, start = self._encode(self._MARK + text), len(self._mark_ids)
        ids = marked[start:]
        is_same = marked[:start] == self._mark_ids and self._special.isdisjoint(ids)
        if is_same and self.trie.decode_bytes(ids) == text.encode("utf-8"):
            return ids
        return self.trie.greedy_tokenize(text)


def _matcher(trie: llguidance.LLTokenizer, structured: Structured) -> llguidance.LLMatcher:
    import llguidance

    matcher = llguidance.LLMatcher(trie, _source(structured), log_level=0, limits=_limits())
    problem = matcher.get_error() if matcher.is_error() else "; ".join(matcher.get_grammar_warnings())
    if not problem and not matcher.is_stopped():
        probe = matcher.deep_copy()
        probe.compute_bitmask()  # what the first mask builds is shared by all later states
        if not probe.is_error() and not (probe.is_stopped() and not probe.is_accepting()):
            return matcher
    raise RequestError(f"structured.{structured.kind} cannot be enforced: {_line(problem) or 'nothing satisfies it'}")


def _source(structured: Structured) -> str:
    """The library's own notation, JSON text."""
    if structured.regex is not None:
        rules: dict[str, Any] = {"lark_grammar": _regex_rule(structured.regex)}
    elif structured.grammar is not None:
        rules = {"lark_grammar": structured.grammar}
    elif structured.choice is not None:
        literals = " | ".join(map(literal, structured.choice))
        rules = {"lark_grammar": f"start: {literals}"}
    else:
        return _json_source(structured)
    return json.dumps({"grammars": [rules]})


def _regex_rule(regex: str) -> str:
    import llguidance

    return f"start: /{llguidance.regex_to_lark(regex, use_ascii='')}/"


def literal(text: str) -> str:
    """A text in Lark's notation: JSON's, but for DEL, which its lexer does not take as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def json_rule(schema: Any) -> str:
    """A JSON schema as the right-hand side of a rule in Lark's notation. Raises RequestError."""
    if not isinstance(schema, dict):
        schema = {} if schema else {"not": {}}
    _check_schema(schema)
    return f"%json {json.dumps(schema | {'x-guidance': _style(compact=False)}, ensure_ascii=False)}"


def _style(*, compact: bool) -> dict[str, Any]:
    style: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
    return style | ({"whitespace_flexible": False} if compact else {"whitespace_pattern": _WHITESPACE})


def _check_schema(schema: Any) -> None:
    if "x-guidance" in schema:
        raise RequestError("structured.json_schema has the key 'x-guidance', which is the compiler's own; leave it out")


def _json_source(structured: Structured) -> str:
    import llguidance

    schema: Any = {"type": "object"} if structured.json_object else json.loads(structured.json_schema)
    if schema is False:
        raise RequestError("structured.json_schema is False: nothing satisfies it")
    schema = {} if schema is True else schema
    _check_schema(schema)
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_style(compact=structured.compact))


def _limits() -> llguidance.LLParserLimits:
    """Bounds on what one request may cost. The library's own would let an ambiguous grammar take a second a token."""
    import llguidance

    return llguidance.LLParserLimits(
        max_items_in_row=400, step_max_items=20_000, max_lexer_states=10_000, verbose_errors=False
    )


def _line(text: str) -> str:
    """The library's message without the lines that quote the source and point into it."""
    lines = [line for line in text.replace("<non-verbose/>", "").splitlines() if not _QUOTED.match(line)]
    return " ".join(" ".join(lines).split())
