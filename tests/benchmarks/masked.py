"""Run by test_without_amx.py as a program: restarts itself without AMX, then says what is left."""

import sys

from benchmarks.without_amx import restart_without_amx, tiles_refused

restart_without_amx("tests.benchmarks.masked")
print(*sys.argv[1:], "refused" if tiles_refused() else "given")
try:
    from pagoda.kernels._extension import best_isa
except ImportError:
    print("no kernels")
else:
    print(best_isa())
