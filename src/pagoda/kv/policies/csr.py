"""CSR: a vector is a few atoms of a learned dictionary, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of, rounded
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.types import KVFormat
    from ...kernels.page_code import Side
    from .base import Heads

ATOMS, ROUNDS, SPARSE = 256, 8, 6
"""Atoms of a dictionary (an index is a byte); rounds of learning, with so many atoms a sample."""


@dataclass(frozen=True)
class SparseCodes(WindowedCodec):
    """``nonzeros`` atoms a vector, found by matching pursuit (section 3), their weights fitted again together and
    rounded to a byte: ``2 * nonzeros + 2`` bytes.

    Deviations: a dictionary for every head, where the paper has one a layer and more atoms; it is learned by turns of
    pursuit and least squares, where the paper trains a network (NeuralDict) for it.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.11741"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    plain: ClassVar[bool] = True
    window: int = 0
    nonzeros: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("nonzeros", self.nonzeros, 1, ATOMS)

    @property
    def name(self) -> str:
        return f"csr-{self.nonzeros}"

    def why_not(self, fmt: KVFormat) -> str | None:
        if self.nonzeros > min(fmt.k_dim, fmt.v_dim):
            return (
                f"its heads of {fmt.k_dim} and {fmt.v_dim} channels are said whole by fewer than {self.nonzeros} atoms"
            )
        return None

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        sides = (("k_atoms", heads.k_dim), ("v_atoms", heads.v_dim))
        return {name: (heads.num_kv_heads, ATOMS, dim) for name, dim in sides}

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return 2 * page_size * (2 * self.nonzeros + 2)

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        parts = []
        for x, atoms in ((k, seen.learned["k_atoms"]), (v, seen.learned["v_atoms"])):
            index, weight = pursuit(x.flatten(2, 3), atoms, self.nonzeros)
            unit = rounded(weight.abs().amax(-1, keepdim=True) / 127)
            whole = (weight / unit.clamp(min=1e-30)).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
            parts += [y.unflatten(2, x.shape[2:4]).flatten(-2) for y in (index.to(torch.uint8), whole)]
            parts.append(bytes_of(unit.unflatten(2, x.shape[2:4])))
        return torch.cat(parts, -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        import torch

        num, found = page_size * self.nonzeros, []
        for part, atoms in zip(pages.chunk(2, -1), (learned["k_atoms"], learned["v_atoms"]), strict=True):
            index, whole, unit = part.split([num, num, 2 * page_size], dim=-1)
            weight = whole.contiguous().view(torch.int8).float().unflatten(-1, (page_size, self.nonzeros))
            weight = weight * numbers_of(unit, page_size)
            dense = weight.new_zeros(*weight.shape[:-1], ATOMS)
            dense.scatter_add_(-1, index.long().unflatten(-1, (page_size, self.nonzeros)), weight)
            found.append(dense @ atoms[:, None])
        return found[0], found[1]

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        num, half = page_size * self.nonzeros, self.page_bytes(page_size, k_dim, v_dim) // 2
        places = [(first, first + num, first + 2 * num, self.nonzeros) for first in (0, half)]
        return Side("atoms", places[0], learned["k_atoms"]), Side("atoms", places[1], learned["v_atoms"])

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """``k_atoms``, ``v_atoms`` [L, H, 256, dim], of length one."""
        return {"k_atoms": _dictionary(k), "v_atoms": _dictionary(v)}


def pursuit(x: Tensor, atoms: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Matching pursuit: ``num`` atoms of ``[L, H, 256, dim]`` for each vector ``[L, H, N, dim]``: their indices int64
    and weights float32 ``[L, H, N, num]``, the weights fitted together in the end.
    """
    import torch

    rest, indices = x, []
    where = torch.arange(atoms.shape[0] * atoms.shape[1], device=x.device).view(*atoms.shape[:2], 1) * atoms.shape[2]
    flat = atoms.flatten(0, 2)
    for _ in range(num):
        match = rest @ atoms.transpose(-1, -2)
        best = match.abs().argmax(-1, keepdim=True)
        indices.append(best)
        rest = rest - match.gather(-1, best) * flat[best[..., 0] + where]
    index = torch.cat(indices, -1)
    chosen = flat[index + where[..., None]]  # [L, H, N, num, dim]
    gram = chosen @ chosen.transpose(-1, -2) + 1e-3 * torch.eye(num, device=x.device)  # an atom may come twice
    weight: Tensor = torch.linalg.solve(gram, (chosen @ x[..., None]))[..., 0]
    return index, weight


def _dictionary(x: Tensor) -> Tensor:
    """Begun at samples spread over the text. An atom becomes what its samples need most (least squares over all)."""
    import torch
    from torch.nn.functional import normalize

    atoms = normalize(x[:, :, torch.linspace(0, x.shape[2] - 1, ATOMS).long()], dim=-1)
    sparse = min(SPARSE, x.shape[-1])
    for _ in range(ROUNDS):
        index, weight = pursuit(x, atoms, sparse)
        dense = x.new_zeros(*x.shape[:3], ATOMS).scatter_add_(-1, index, weight)
        gram = dense.transpose(-1, -2) @ dense
        ridge = 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(ATOMS)
        found = torch.linalg.solve(gram + ridge, dense.transpose(-1, -2) @ x)
        used = dense.abs().sum(2)[..., None] > 0
        atoms = normalize(torch.where(used, found, atoms), dim=-1)
    return atoms


POLICY = SparseCodes
