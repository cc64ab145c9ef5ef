"""Kernels one by one, beside what torch has for the same work: ``python -m benchmarks.ops linear``, …."""
