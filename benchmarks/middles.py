"""How much faster a wide ResNet is without channels between its convolutions, and why not more.

    python benchmarks/middles.py [--save]
    python benchmarks/middles.py --quick     # small, 3 pairs

The widths are those of the first seed's networks in the committed results of
`nip_it_in_the_bud.py`, pruned by Fisher; the same widths rounded up to multiples of 8; and those
shares of every block of WRN-16-2. A forward pass at batch 256 against the dense network's, in
turns. Asked for: as many times faster as it has fewer FLOPs, within 15 %, or the reason: the share
of the time that is in kernels with products, and what these reach, tell it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measuring  # isort: skip  # sets XLA's threads: before jax

import jax
import jax.numpy as jnp

import jaxprune as jp
from benchmarks.curvature_cases import compared
from benchmarks.structure_profile import compiled, profile
from experiments.models import WideResNet
from experiments.models.wide_resnet import wide_widths
from experiments.nip_it_in_the_bud import PRESETS
from experiments.nipping.arms import as_shape, tuned

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


class Net(NamedTuple):
    """A network that is measured.

    Attributes:
      name: of the dense network.
      image: height, width, channels.
      depth, width: of the wide ResNet.
      left: what is left, in words, and the widths of the blocks' middles.
    """

    name: str
    image: tuple[int, int, int]
    depth: int
    width: int
    left: dict[str, tuple[int, ...]]


def pruned() -> dict[float, tuple[int, ...]]:
    """Middle widths at every mark, from the committed results of the cpu preset.

    Raises:
      FileNotFoundError: there are none.
    """
    config = PRESETS["cpu"]["wrn"]
    for path in sorted(RESULTS.glob("nip_it_in_the_bud-wrn-*.json")):
        found = json.loads(path.read_text())
        if found["config"]["preset"] == "cpu":
            shapes = {m: found["pieces"][f"{tuned('fisher', m)} seed 0"]["shape"]
                      for m in config.marks}  # fmt: skip
            return {mark: as_shape(shape).middles or () for mark, shape in shapes.items()}
    raise FileNotFoundError(
        f"No results of the cpu preset in {RESULTS}. Run experiments/nip_it_in_the_bud.py --out."
    )


def nets() -> list[Net]:
    """The networks and what is left of them."""
    found, image = pruned(), (28, 28, 1)
    own: dict[str, tuple[int, ...]] = {}
    for mark, middles in found.items():
        own[f"{mark:.0%} gone"] = middles
        own[f"{mark:.0%} gone, in 8s"] = tuple(-(-middle // 8) * 8 for middle in middles)
    wide, shares = wide_widths(16, 2), (0.75, 0.5, 0.25, 0.1)
    even = {f"{share:.0%} of every block": tuple(round(share * w) for w in wide)
            for share in shares}  # fmt: skip
    return [Net("WRN-10-1", image, 10, 1, own), Net("WRN-16-2", (32, 32, 3), 16, 2, even)]


QUICK = [Net("WRN-10-1", (8, 8, 1), 10, 1, {"half": (8, 16, 32)})]


def rows_of(net: Net, batch: int, most: int) -> list[list[str]]:
    """The dense network, then what is left of it."""
    images = jnp.zeros((batch, *net.image))

    def ready(middles: tuple[int, ...] | None):
        model = WideResNet(net.depth, net.width, 10, middles=middles)
        variables = model.init(jax.random.key(0), images[:1])
        flops = jp.couple(model.apply, variables, images[:1]).flops()
        function = compiled(model.apply, variables, images)
        call = lambda: jax.block_until_ready(function(variables, images))
        return call, flops * batch, profile(function, variables, images)

    dense, whole, _ = ready(None)
    rows = []
    for words, middles in {"all": None, **net.left}.items():
        call, flops, found = ready(middles)
        times = compared(call, dense, most)
        faster, fewer = times.median, whole / flops
        rows.append(
            [
                net.name, words, "-".join(map(str, middles)) if middles else "",
                f"{fewer:.2f}", times.told(2),
                f"{faster / fewer - 1:+.0%}", str(times.pairs), f"{times.baseline:.1f}",
                f"{flops / times.baseline / found.products / 1e6:.1f}", f"{found.products:.0%}",
            ]
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure every network."""
    quick = measuring.is_quick(__doc__)
    batch, most = (2, 3) if quick else (256, 20)
    rows = [row for net in (QUICK if quick else nets()) for row in rows_of(net, batch, most)]
    head = ["network", "left", "middle widths", "x fewer FLOPs", "x faster (95 %)", "apart",
            "pairs", "ms", "GFLOP/s in products", "time in products"]  # fmt: skip
    measuring.publish("middles", "python benchmarks/middles.py", head, rows)


if __name__ == "__main__":
    main()
