"""Benchmarks: programs that measure, apart from the tests, which never do."""
