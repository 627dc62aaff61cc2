"""Measurements of what the README promises; docs/benchmarks.md says how to run them and what each number means."""
