"""A decoder's blocks as one list of instructions that the C++ side runs without Python in between (csrc/program.hpp).

Running a layer op by op from Python costs some 25 calls of 3-20 us each; a whole step of a small model is shorter than
that. This file knows arrays only: `models.program` writes the list from a model's spec, and the ops one by one are its
plain twin.

Registers: 0 is the residual stream that the caller passes to `run`; the others are rows of the widths given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._extension import DTYPES, _cpu, store_of
from .cpu_packed import FORMATS
from .cpu_rows import ACTIVATIONS
from .dispatch import profiling
from .moving import copy_of, put
from .packed import PackedWeight
from .step import StepArrays


class Program:
    """Instructions are appended by the methods below, in the order in which they run."""

    def __init__(self, dtype: torch.dtype, widths: Sequence[int]) -> None:
        self._program = _cpu.Program(DTYPES[dtype], list(widths))
        self._dtype, self._widths = dtype, tuple(widths)
        self._alive: list[Tensor] = []  # what the instructions' addresses point to
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._attends: dict[int, tuple[int, int, tuple[int, int], int, dict[str, Any]]] = {}  # by layer, as appended
        self._program.watch(profiling())

    def __len__(self) -> int:
        return len(self._program)

    def timings(self) -> dict[str, tuple[int, float]]:
        """Calls and seconds by kind of instruction, products by their shape; empty unless ``PAGODA_PROFILE`` is set."""
        found: dict[str, tuple[int, float]] = {}
        for name, calls, seconds in self._program.timings():
            before = found.get(name, (0, 0.0))
            found[name] = (before[0] + calls, before[1] + seconds)
        return found

    def norm(
        self, src: int, dst: int, weight: Tensor | None, bias: Tensor | None, *, eps: float, offset: float,
        centred: bool, round_first: bool,
    ) -> None:  # fmt: skip
        """dst = norm(src): LayerNorm where ``centred``, else RMSNorm (`rounds_first` says when it rounds)."""
        self._program.norm(
            src, dst, self._widths[src], self._at(weight), self._at(bias), eps, offset, centred, round_first
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

    def linear(self, src: int, dst: int, weight: PackedWeight, bias: Tensor | None, *, dynamic: bool) -> None:
        """dst = src @ weight.T + bias."""
        self._program.linear(
            src, dst, FORMATS[weight.format], weight.outputs, weight.inputs, weight.group, self._at(weight.data),
            self._at(weight.scales), self._at(weight.zeros),
            weight.scales is None or weight.scales.dtype == torch.float32, self._at(bias), dynamic,
        )  # fmt: skip

    def activation(self, src: int, dst: int, kind: str, *, gated: bool) -> None:
        """dst = act(gate) * up of src = [gate | up], or act(src)."""
        self._program.activation(src, dst, gated, ACTIVATIONS[kind], 1.702, 7.0)

    def add(self, src: int, dst: int, scale: float = 1.0) -> None:
        """dst += src * scale."""
        self._program.add(src, dst, scale)

    def clip(self, reg: int, bound: float) -> None:
        """All elements to [-bound, bound]."""
        self._program.clip(reg, bound)

    def rotary(self, reg: int, table: int, heads: int, dim: int, *, interleaved: bool) -> None:
        """The first ``heads`` heads of a fused projection turn by the angles of table number ``table``."""
        self._program.rotary(reg, table, heads, dim, interleaved)

    def attend(
        self, src: int, dst: int, layer: int, heads: tuple[int, int], dim: int, *, scale: float, soft_cap: float,
        window: int, sinks: Tensor | None, alibi_slopes: Tensor | None, last: bool = False,
    ) -> None:  # fmt: skip
        """Writes K and V of src = [q | k | v] into the layer's pages and attends with q; dst [T, Hq * dim].

        ``last``: no later layer needs the others' K and V, so that only the tokens that ``run`` is asked for go on.
        """
        options = {
            "scale": scale, "soft_cap": soft_cap, "window": window, "sinks": sinks, "alibi_slopes": alibi_slopes
        }  # fmt: skip
        self._attends[layer] = (src, dst, heads, dim, options)
        sinks, slopes = (None if t is None else t.float().contiguous() for t in (sinks, alibi_slopes))
        self._program.attend(
            src, dst, layer, *heads, dim, scale, soft_cap, window, self._at(sinks), self._at(slopes), last
        )

    def run(
        self, x: Tensor, positions: Tensor, rotary: Sequence[tuple[Tensor, Tensor]], step: StepArrays, isa: str = "",
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All instructions over x ``[T, hidden]`` (contiguous, changed in place), positions int64 ``[T]``; returns x.

        wanted: int64 ``[N]``, ascending, of each sequence its last tokens: only their N rows are returned, a part of x.
        The last layer computes no others beyond their K and V, with the same bits.

        rotary: (cos, sin) ``[positions, pairs]`` by table number. Raises IndexError for a page or row that does not
        exist, ValueError for tokens that are not the last ones of their sequences.
        """
        tokens, (num_seqs, _) = x.shape[0], step.row_of.shape
        tables, layout, rows = self._begin(x, rotary), step.layout, step.rows
        own, choice = step.rows.shape[0] > 1, step.choice
        chosen = [] if choice is None else [getattr(choice, name).ctypes.data for name in choice.__slots__]
        sums = [] if step.sums is None else [getattr(step.sums, name).ctypes.data for name in step.sums.__slots__]
        self._program.run(
            x.data_ptr(), tokens, positions.data_ptr(), tables, step.pages.data_ptr(), step.pages.shape[0],
            store_of(layout), layout.page_size, layout.k_dim, layout.v_dim, num_seqs, rows.data_ptr(),
            rows.stride(0) if own else 0, rows.shape[1], rows.shape[2], step.row_of.data_ptr(), step.offset.data_ptr(),
            step.kv_lens.data_ptr(), step.kv_lens.stride(0) if own else 0, step.q_starts.data_ptr(),
            step.page_ids.data_ptr(), step.slots.data_ptr(), step.slots.stride(0) if own else 0,
            0 if wanted is None else wanted.data_ptr(), -1 if wanted is None else len(wanted),
            chosen, 0 if choice is None else len(choice.seqs), sums,
            self._workspace.data_ptr(), torch.get_num_threads(), isa,
        )  # fmt: skip
        return x if wanted is None else x[: len(wanted)]

    def run_attending(
        self, x: Tensor, positions: Tensor, rotary: Sequence[tuple[Tensor, Tensor]], attend: Callable[..., Tensor],
        isa: str = "", wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``run``, where somebody else writes K and V and attends: ``attend(layer, q [T, Hq, dim], k [T, H, dim], v,
        **options)`` gives ``[T, Hq, dim]``. What it is given is its own; what it raises ends the step.
        """
        tokens, tables = x.shape[0], self._begin(x, rotary)

        def attended(layer: int, qkv_at: int, out_at: int) -> None:
            src, dst, (num_heads, num_kv_heads), dim, options = self._attends[layer]
            qkv = copy_of(self._rows(qkv_at, tokens, self._widths[src])).view(tokens, -1, dim)  # policies keep queries
            q, k, v = qkv.split([num_heads, num_kv_heads, num_kv_heads], 1)
            put(self._rows(out_at, tokens, self._widths[dst]).view(tokens, -1, dim), attend(layer, q, k, v, **options))

        self._program.run_attending(
            x.data_ptr(), tokens, positions.data_ptr(), tables, 0 if wanted is None else wanted.data_ptr(),
            -1 if wanted is None else len(wanted), attended, self._workspace.data_ptr(), torch.get_num_threads(), isa,
        )  # fmt: skip
        return x if wanted is None else x[: len(wanted)]

    def _begin(self, x: Tensor, rotary: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, int, int, int]]:
        """Room for the registers; returns the tables' addresses."""
        assert x.dtype == self._dtype
        assert x.is_contiguous()
        needed = self._program.workspace_bytes(x.shape[0])
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        return [(cos.data_ptr(), sin.data_ptr(), DTYPES[cos.dtype], cos.shape[1]) for cos, sin in rotary]

    def _rows(self, address: int, tokens: int, width: int) -> Tensor:
        """A register ``[tokens, width]``."""
        first = address - self._workspace.data_ptr()
        return self._workspace[first : first + tokens * width * self._dtype.itemsize].view(self._dtype)

    def _at(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        assert tensor.is_contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()
