"""Structure: time to couple, what shrinking saves, and Torch-Pruning side by side.

    python benchmarks/structure.py               # --save writes the committed tables
    python benchmarks/structure.py --only trace  # or speed, or peers
    python benchmarks/structure.py --quick       # small networks, 3 pairs

Asked for: a ResNet of 145 convolutions coupled in at most 0.5 s, trace included; a shrunk network
as many times faster as it has fewer FLOPs, within 15 %, or a profile that says why not. Without
torch or torch-pruning the tables beside it are skipped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax  # noqa: F401

from benchmarks.structure_peers import against_torch_pruning
from benchmarks.structure_speed import speed
from benchmarks.structure_trace import trace

PARTS = {"trace": trace, "speed": speed, "peers": against_torch_pruning}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--quick", action="store_true", help="small networks, few pairs")
    parser.add_argument("--save", action="store_true", help="keep the tables")
    asked = parser.parse_args()
    if asked.quick and asked.save:
        parser.error("--quick measures nothing worth saving")
    for name, part in PARTS.items():
        if asked.only in (None, name):
            part(asked.quick)
