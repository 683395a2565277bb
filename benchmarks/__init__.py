"""Benchmarks and the demo; not installed."""
