"""Measurements that are no tests: run by hand, from the root of the repository, with ``python -m benchmarks.NAME``."""
