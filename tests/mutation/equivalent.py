"""Mutants that no test can tell from the original, and why; reviewed by hand."""

_ENDS = "below and above its ends a rise is clipped to `initial` and `final` once more"

EQUIVALENT: dict[str, str] = {
    "schedule.py/_rise.at: 0.0 -> -1.0": _ENDS,
    "schedule.py/_rise.at: 0.0 -> -1.0 #2": _ENDS,
    "schedule.py/_rise.at: 0 -> -1 #2": "every shape is exactly 0 at 0",
}
