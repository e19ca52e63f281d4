"""Mutants that no test can tell from the original, and why; reviewed by hand."""

EQUIVALENT: dict[str, str] = {}
