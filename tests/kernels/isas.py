"""The instruction sets that this machine can run the C++ kernels with. Skips the module where they are not built."""

import pytest

cpu = pytest.importorskip("pagoda.kernels.cpu", reason="the C++ extension is not built", exc_type=ImportError)
ORDER = ["base", "avx2", "avx512", "avx512vnni", "avx512bf16", "avx512bf16slow", "amx"]
ISAS = ORDER[: ORDER.index(cpu.best_isa()) + 1]
