"""Benchmarks: what a user's jobs cost on this machine. ``python -m benchmarks --help``; see docs/performance.md."""
