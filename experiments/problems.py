"""What a user of an experiment can mend: it is told in a line, without a traceback."""

from __future__ import annotations

from experiments.data import DataUnavailable
from experiments.locking import Busy

PROBLEMS = (ValueError, FloatingPointError, OSError, Busy, DataUnavailable)
"""Bad arguments, runs that failed, a full disk, another process, data that cannot be had."""
