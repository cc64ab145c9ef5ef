"""The two KV views of the engine as `parity.Run` wants them: (sequence numbers, tokens of each) -> view of one step."""

from __future__ import annotations

from pagoda.core.types import Granularity
from pagoda.kv.codecs.base import with_dtype
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool
from pagoda.kv.storage import PageStorage
from pagoda.kv.view import StepView
from pagoda.models.shape import ModelShape

CODECS = ("int8",)


class Dense:
    """One plain K and V for each layer and sequence."""

    def __init__(self) -> None:
        self.cache = DenseCache()

    def __call__(self, seqs: list[int], counts: list[int]) -> DenseView:
        return DenseView(self.cache, seqs, counts)


class Paged:
    """Pages, through the manager that the engine uses. A step's tokens are committed when the next one asks."""

    def __init__(
        self,
        shape: ModelShape,
        num_seqs: int,
        *,
        page_size: int = 16,
        granularity: Granularity = Granularity.SEQUENCE,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        fmt = shape.kv_format(page_size, "bfloat16" if dtype in CODECS else dtype)
        if dtype in CODECS:
            fmt = with_dtype(fmt, dtype)
        num_blocks = num_seqs * fmt.blocks_for(128)
        self.manager = KVManager(fmt, PagePool(fmt, num_blocks), None)
        self.storage = PageStorage(fmt, num_blocks, device)
        self.granularity = granularity
        self.pending: list[tuple[int, int]] = []

    def __call__(self, seqs: list[int], counts: list[int]) -> StepView:
        for seq, count in self.pending:
            self.manager.commit(seq, [0] * count)
        self.pending = list(zip(seqs, counts, strict=True))
        for seq, count in self.pending:
            if seq not in self.manager.seq_ids():
                self.manager.admit(seq, [0] * 128, granularity=self.granularity)
            assert self.manager.reserve(seq, count)
        self.storage.run_copies(self.manager.take_copies())
        return StepView(self.storage, [self.manager.table(seq) for seq in seqs], counts)
