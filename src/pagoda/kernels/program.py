"""A decoder's blocks as one list of instructions that the C++ side runs without Python in between (csrc/program.hpp).

Running a layer op by op from Python costs some 25 calls of 3-20 us each; a whole step of a small model is shorter than
that. This file knows arrays only: `models.program` writes the list from a model's spec, and the ops one by one are its
plain twin.

Registers: 0 is the residual stream, which the caller passes to `run` and `step` looks up from token ids; the others are
rows of the widths given here. Of ``passing`` ones only some rows are there at a time (csrc/program.hpp): registers that
nothing but a feed-forward's two products and what stands between them reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._extension import DTYPES, PAGES, _cpu, store_of
from .cpu_packed import packed_matrix
from .cpu_routing import ROUTERS
from .cpu_rows import ACTIVATIONS
from .dispatch import profiling
from .moving import copy_of, put
from .packed import PackedWeight
from .step import StepArrays

Tables = Sequence[tuple[Tensor, Tensor]]
"""cos, sin ``[positions, pairs]`` by table number."""


class Program:
    """Instructions are appended by the methods below, in the order in which they run."""

    def __init__(self, dtype: torch.dtype, widths: Sequence[int], passing: Sequence[int] = ()) -> None:
        self._program = _cpu.Program(DTYPES[dtype], list(widths), list(passing))
        self._dtype, self._widths = dtype, tuple(widths)
        self._alive: list[Tensor] = []  # what the instructions' addresses point to
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._workspace_at = self._most_tokens = 0  # its address, the tokens that it has room for
        self._logits = self._rows_of_logits = torch.empty(0, 0)  # of the most rows so far, of this step's
        self._logits_at = self._num_rows = 0  # where they lie, and how many rows are this step's
        self._tables: Tables = ()
        self._tables_at = _cpu.RotaryTables([])  # where those lie
        self._attends: dict[int, tuple[int, int, tuple[int, int], int, dict[str, Any]]] = {}  # by layer, as appended
        self._program.watch(profiling())

    def __len__(self) -> int:
        return len(self._program)

    def workspace_bytes(self, num_tokens: int) -> int:
        """What registers, and what experts need beside them, take for a step of so many tokens."""
        num_bytes: int = self._program.workspace_bytes(num_tokens)
        return num_bytes

    def timings(self) -> dict[str, tuple[int, float]]:
        """Calls and seconds by kind of instruction, products by their shape; empty unless ``PAGODA_PROFILE`` is set."""
        found: dict[str, tuple[int, float]] = {}
        for name, calls, seconds in self._program.timings():
            before = found.get(name, (0, 0.0))
            found[name] = (before[0] + calls, before[1] + seconds)
        return found

    def norm(
        self, src: int, dst: int, weight: Tensor | None, bias: Tensor | None, *, eps: float, offset: float,
        centred: bool, round_first: bool, dim: int = 0,
    ) -> None:  # fmt: skip
        """dst = norm(src): LayerNorm where ``centred``, else RMSNorm (`rounds_first` says when it rounds).

        ``dim``: of so many elements, the first of src.
        """
        self._program.norm(
            src, dst, dim or self._widths[src], self._at(weight), self._at(bias), eps, offset, centred, round_first
        )

    def head_norm(
        self, reg: int, first: int, dim: int, parts: int, weight: Tensor | None, bias: Tensor | None, *, eps: float,
        offset: float, centred: bool, round_first: bool, own_weights: bool,
    ) -> None:  # fmt: skip
        """In place: ``parts`` norms of ``dim`` elements from element ``first``; ``own_weights``: [parts, dim]."""
        stride = dim if own_weights else 0
        self._program.head_norm(
            reg, first, dim, parts, self._at(weight), self._at(bias), stride, eps, offset, centred, round_first
        )

    def embed(self, weight: PackedWeight) -> None:
        """Register 0 = the rows of the step's token ids, where the caller of ``step`` has no more than those."""
        self._program.embed(*self._matrix(weight))

    def head(self, weight: PackedWeight, bias: Tensor | None, *, dynamic: bool) -> None:
        """Logits = register 0 @ weight.T + bias and, where they are asked for, the likeliest token of each row."""
        self._logits = self._rows_of_logits = torch.empty(0, weight.outputs)
        self._program.head(*self._matrix(weight), self._at(bias), dynamic)

    def linear(self, src: int, dst: int, weight: PackedWeight, bias: Tensor | None, *, dynamic: bool) -> None:
        """dst = src @ weight.T + bias."""
        self._program.linear(src, dst, *self._matrix(weight), self._at(bias), dynamic)

    def activation(self, src: int, dst: int, kind: str, *, gated: bool) -> None:
        """dst = act(gate) * up of src = [gate | up], or act(src)."""
        self._program.activation(src, dst, gated, ACTIVATIONS[kind], 1.702, 7.0)

    def logits(self, src: int, weight: Tensor, bias: Tensor | None, *, exact: bool = False) -> None:
        """What a router says of its experts, a gate of a layer: as `ops.router_logits`, for the instruction behind."""
        self._program.logits(src, weight.shape[0], self._at(weight), self._at(bias), exact)

    def packed_logits(self, src: int, weight: PackedWeight, bias: Tensor | None, *, dynamic: bool) -> None:
        """The same by a matrix in a weight format."""
        self._program.packed_logits(src, *self._matrix(weight), self._at(bias), dynamic)

    def route(
        self, correction: Tensor | None, num_experts: int, *, kind: str, top_k: int, normalize: bool, scaling: float,
        num_groups: int, topk_group: int,
    ) -> None:  # fmt: skip
        """Which experts the tokens pass by the logits before: as `ops.route`, for the ``experts`` behind it."""
        self._program.route(
            self._at(correction), ROUTERS[kind], num_experts, top_k, normalize, scaling, num_groups, topk_group
        )

    def experts(
        self, src: int, dst: int, gate_up: Sequence[PackedWeight], down: Sequence[PackedWeight],
        gate_up_b: Tensor | None, down_b: Tensor | None, *, dynamic: Sequence[tuple[bool, bool]],
        alike: Sequence[int], top_k: int, kind: str, alpha: float, limit: float,
    ) -> None:  # fmt: skip
        """dst = what the experts that were chosen make of src, as `ops.moe_dispatch` does with gated activations.

        Matrices by expert; ``dynamic`` of gate_up and down each. Experts of one number in ``alike`` have matrices of
        one format, which are multiplied together.
        """
        matrices = ([self._matrix(m) for m in part] for part in (gate_up, down))
        kinds = [(*of, number) for of, number in zip(dynamic, alike, strict=True)]
        self._program.experts(
            src, dst, *matrices, kinds, self._at(gate_up_b), self._at(down_b), ACTIVATIONS[kind], alpha, limit, top_k
        )

    def gate(self, reg: int) -> None:
        """reg *= sigmoid of the logits before, as `ops.sigmoid_gate`."""
        self._program.gate(reg)

    def add(self, src: int, dst: int, scale: float = 1.0) -> None:
        """dst += src * scale."""
        self._program.add(src, dst, scale)

    def clip(self, reg: int, bound: float) -> None:
        """All elements to [-bound, bound]."""
        self._program.clip(reg, bound)

    def rotary(self, reg: int, table: int, heads: int, dim: int, *, interleaved: bool, first: int = 0) -> None:
        """The first ``heads`` heads of a fused projection turn by the angles of table number ``table``, each from its
        element ``first`` on.
        """
        self._program.rotary(reg, table, heads, dim, interleaved, first)

    def latent(
        self, down: int, queries: int, dst: int, key_up: Tensor, rope_dim: int, slot_at: int
    ) -> None:  # fmt: skip
        """dst = what latent attention asks pages with, and what it writes there (csrc/program.hpp, LatentStep).

        key_up ``[H, nope_dim, rank]``; ``slot_at``: the element of ``down`` where ``[latent | rotary key]`` begins.
        """
        heads, nope, rank = key_up.shape
        self._program.latent(down, queries, dst, heads, nope, rope_dim, rank, slot_at, self._at(key_up))

    def head_products(self, src: int, dst: int, weight: Tensor) -> None:
        """dst ``[T, H, R]`` = src ``[T, H, C]`` times each head's ``[R, C]``, as `ops.head_products`."""
        self._program.head_products(src, dst, *weight.shape, self._at(weight))

    def attend(
        self, src: int, dst: int, layer: int, heads: tuple[int, int], dim: int, *, scale: float, soft_cap: float,
        window: int = 0, sinks: Tensor | None = None, alibi_slopes: Tensor | None = None, last: bool = False,
        v_dim: int = 0,
    ) -> None:  # fmt: skip
        """Writes K and V of src = [q | k | v] into the layer's pages and attends with q; dst [T, Hq * dim].

        ``last``: no later layer needs the others' K and V, so that only the tokens that ``run`` is asked for go on.
        ``v_dim``: pages are latent, src = [q | slot]; dst [T, Hq * v_dim].
        """
        options: dict[str, Any] = {"scale": scale, "v_dim": v_dim} if v_dim else {
            "scale": scale, "soft_cap": soft_cap, "window": window, "sinks": sinks, "alibi_slopes": alibi_slopes
        }  # fmt: skip
        self._attends[layer] = (src, dst, heads, dim, options)
        sinks, slopes = (None if t is None else t.float().contiguous() for t in (sinks, alibi_slopes))
        self._program.attend(
            src, dst, layer, *heads, dim, scale, soft_cap, window, self._at(sinks), self._at(slopes), last, v_dim
        )

    def run(
        self, x: Tensor, positions: Tensor, rotary: Tables, step: StepArrays, isa: str = "",
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All instructions over x ``[T, hidden]`` (contiguous, changed in place), positions int64 ``[T]``; returns x.

        wanted: int64 ``[N]``, ascending, of each sequence its last tokens: only their N rows are returned, a part of x.
        The last layer computes no others beyond their K and V, with the same bits.

        Raises IndexError for a page or row that does not exist, ValueError for tokens that are not the last ones of
        their sequences.
        """
        tables = self._begin(x, rotary)
        self._program.run(
            step.native or _native(step), x.data_ptr(), x.shape[0], positions.data_ptr(), tables,
            0 if wanted is None else wanted.data_ptr(), -1 if wanted is None else len(wanted), self._workspace_at,
            torch.get_num_threads(), isa,
        )  # fmt: skip
        return x if wanted is None else x[: len(wanted)]

    def step(
        self, ids: list[int], positions: list[int], rotary: Tables, step: StepArrays,
        wanted: list[int] | None = None, *, likeliest: bool = False, isa: str = "",
    ) -> tuple[Tensor, list[int]]:  # fmt: skip
        """From token ids to logits in one call, for a program that begins with ``embed`` and ends with ``head``.

        Returns float32 ``[T or len(wanted), vocab_size]``, which lie where the next step's will: valid until then; and
        the likeliest token of each row (see `ops.greedy`) if ``likeliest``, else nothing. Where all of up to 64 rows
        have one, the logits are not written: they would be most of what the step writes.

        Numbers and errors are as for ``run``; IndexError also for an id that is no row.
        """
        num_rows = len(ids) if wanted is None else len(wanted)
        if num_rows != self._num_rows:
            self._make_rows(num_rows)
        self._make_room(len(ids))
        chosen: list[int] = self._program.step(
            step.native or _native(step), ids, positions, self._place(rotary), wanted, self._logits_at, likeliest,
            self._workspace_at, torch.get_num_threads(), isa,
        )  # fmt: skip
        return self._rows_of_logits, chosen

    def run_attending(
        self, x: Tensor, positions: Tensor, rotary: Tables, attend: Callable[..., Tensor],
        isa: str = "", wanted: Tensor | None = None, attend_latent: Callable[..., Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``run``, where somebody else writes K and V and attends: ``attend(layer, q [T, Hq, dim], k [T, H, dim], v,
        **options)`` gives ``[T, Hq, dim]``. What it is given is its own; what it raises ends the step. Where pages are
        latent, ``attend_latent(layer, q, slots [T, 1, dim], v_dim=, scale=)`` gives ``[T, Hq, v_dim]``.
        """
        tokens, tables = x.shape[0], self._begin(x, rotary)

        def attended(layer: int, qkv_at: int, out_at: int) -> None:
            src, dst, (num_heads, num_kv_heads), dim, options = self._attends[layer]
            qkv = copy_of(self._rows(qkv_at, tokens, self._widths[src])).view(tokens, -1, dim)  # policies keep queries
            if "v_dim" in options:
                assert attend_latent is not None
                found = attend_latent(layer, *qkv.split([num_heads, num_kv_heads], 1), **options)
            else:
                found = attend(layer, *qkv.split([num_heads, num_kv_heads, num_kv_heads], 1), **options)
            put(self._rows(out_at, tokens, self._widths[dst]).view(found.shape), found)

        self._program.run_attending(
            x.data_ptr(), tokens, positions.data_ptr(), tables, 0 if wanted is None else wanted.data_ptr(),
            -1 if wanted is None else len(wanted), attended, self._workspace_at, torch.get_num_threads(), isa,
        )  # fmt: skip
        return x if wanted is None else x[: len(wanted)]

    def _begin(self, x: Tensor, rotary: Tables) -> Any:
        """Room for the registers; returns where the tables lie, as the extension takes it."""
        assert x.dtype == self._dtype
        assert x.is_contiguous()
        self._make_room(x.shape[0])
        return self._place(rotary)

    def _place(self, rotary: Tables) -> Any:
        """Where the tables lie; asked again only where one of them is another than in the step before."""
        known = len(rotary) == len(self._tables)
        if not known or any(new[0] is not old[0] for new, old in zip(rotary, self._tables, strict=True)):
            self._tables = rotary
            self._tables_at = _cpu.RotaryTables(
                [(cos.data_ptr(), sin.data_ptr(), DTYPES[cos.dtype], cos.shape[1]) for cos, sin in rotary]
            )
        return self._tables_at

    def _make_room(self, num_tokens: int) -> None:
        if num_tokens > self._most_tokens:
            self._workspace = torch.empty(self.workspace_bytes(num_tokens), dtype=torch.uint8)
            self._workspace_at, self._most_tokens = self._workspace.data_ptr(), num_tokens

    def _make_rows(self, num_rows: int) -> None:
        if num_rows > self._logits.shape[0]:
            vocab_size = self._logits.shape[1]
            self._logits = self._rows_of_logits = torch.empty(0, vocab_size)  # not both at once
            self._logits_at = self._num_rows = 0  # should there be no memory: nobody writes where the old ones lay
            self._logits = torch.empty(num_rows, vocab_size)
        self._rows_of_logits, self._logits_at, self._num_rows = (
            self._logits[:num_rows],
            self._logits.data_ptr(),
            num_rows,
        )

    def _rows(self, address: int, tokens: int, width: int) -> Tensor:
        """A register ``[tokens, width]``."""
        first = address - self._workspace_at
        return self._workspace[first : first + tokens * width * self._dtype.itemsize].view(self._dtype)

    def _matrix(self, weight: PackedWeight) -> tuple[object, ...]:
        """A packed weight as the extension takes it; its addresses stay good as long as the program."""
        for tensor in (weight.data, weight.scales, weight.zeros):
            self._at(tensor)
        return packed_matrix(weight)

    def _at(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        assert tensor.is_contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()


def _native(step: StepArrays) -> Any:
    """The arrays as the extension takes them, made once."""
    layout, rows, own, choice, coded = step.layout, step.rows, step.rows.shape[0] > 1, step.choice, step.coded
    chosen = [] if choice is None else [getattr(choice, name).ctypes.data for name in choice.__slots__]
    sums, queries, weights = (
        [] if part is None else [getattr(part, name).ctypes.data for name in part.__slots__]
        for part in (step.sums, step.queries, step.weights)
    )
    raw = [] if coded is None else [x.ctypes.data for x in (coded.k, coded.v, coded.starts, coded.room, coded.encoded)]
    step.native = _cpu.StepArrays(
        step.page_ids.shape[1], step.pages.data_ptr(), step.pages.shape[0],
        store_of(layout) if coded is None else PAGES, layout.page_size,
        layout.k_dim, layout.v_dim, step.row_of.shape[0], rows.data_ptr(), rows.stride(0) if own else 0, rows.shape[1],
        rows.shape[2],
        step.row_of.data_ptr(), step.offset.data_ptr(), step.kv_lens.data_ptr(), step.kv_lens.stride(0) if own else 0,
        step.q_starts.data_ptr(), 0 if step.wide is None else step.wide.data_ptr(), step.page_ids.data_ptr(),
        step.slots.data_ptr(), step.slots.stride(0) if own else 0,
        chosen, 0 if choice is None else len(choice.seqs), sums, queries, [] if coded is None else [coded.sides],
        raw, weights,
    )  # fmt: skip
    return step.native
