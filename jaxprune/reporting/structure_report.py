"""What removing units saves: per group, in all, and in measured milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from jaxprune.coupling import Coupling, shrunk_apply
from jaxprune.coupling.groups import Kept
from jaxprune.coupling.models import source_of
from jaxprune.reporting import rendering
from jaxprune.reporting.timing import Latency, latencies
from jaxprune.structure import shrink_units
from jaxprune.types import Params, PyTree


@dataclass(frozen=True)
class GroupDiff:
    """What became of one group.

    Attributes:
      name: of the group.
      before, after: units.
      parameters: what is saved if this group alone loses its units; two groups that meet in one
        matrix both count the corner they share, so groups do not add up to the total.
      flops: likewise, FLOPs of one call.
    """

    name: str
    before: int
    after: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class Size:
    """What a network costs: entries, bytes of all leaves, FLOPs and bytes of results of a call."""

    parameters: int
    bytes: int
    flops: int
    activations: int


@dataclass(frozen=True)
class StructureReport:
    """A shrunk model in numbers; `print` it.

    Attributes:
      groups: one a group, in the order of the coupling.
      dense: the model that was coupled.
      shrunk: what is left of it.
      latency: of the dense model; None where it was not measured.
      shrunk_latency: of the shrunk one, timed in turns with the dense one.
    """

    groups: tuple[GroupDiff, ...]
    dense: Size
    shrunk: Size
    latency: Latency | None = None
    shrunk_latency: Latency | None = None

    @property
    def flop_ratio(self) -> float:
        """Dense over shrunk FLOPs: the speed-up if time were FLOPs."""
        return self.dense.flops / self.shrunk.flops if self.shrunk.flops else 1.0

    @property
    def speed_up(self) -> float | None:
        """Dense over shrunk median milliseconds, measured; None if they were not."""
        if self.latency is None or self.shrunk_latency is None:
            return None
        return self.latency.median_ms / self.shrunk_latency.median_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        times = {"latency": self.latency, "shrunk_latency": self.shrunk_latency}
        return {
            "groups": [asdict(group) for group in self.groups],
            "dense": asdict(self.dense),
            "shrunk": asdict(self.shrunk),
            "flop_ratio": self.flop_ratio,
            "speed_up": self.speed_up,
            **{name: time and time._asdict() for name, time in times.items()},
        }

    def __str__(self) -> str:
        return rendering.as_text(self)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(_table(self.groups), *map(Text, _lines(self)))


def structure_report(
    coupling: Coupling,
    kept: Kept,
    variables: Params | None = None,
    *inputs: PyTree,
    measure: bool = True,
) -> StructureReport:
    """Before and after: what removing units saves on paper, and what it saves on this machine.

    Args:
      coupling: from `couple`; FLOPs and activations are of a call on the inputs it was made with.
      kept: the units that are kept, `{group: bool[units]}`, such as `coupling.kept(mask)`.
      variables: the dense variables; with them and `inputs` both models are timed, jitted, in
        turns. They are shrunk here.
      *inputs: what to call both models on.
      measure: False counts only, whatever is given.

    Returns:
      A `StructureReport`. `print(report)` shows it. FLOPs count matrix products and convolutions;
      small models are often no faster for having fewer.

    Raises:
      ValueError: an unknown group, a wrong number of units, a group left empty; variables that
        were not coupled, or without inputs; nothing to measure with: a coupling that was loaded.

    Example:
      >>> from jaxprune.coupling import couple
      >>> apply = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> w = [np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)]
      >>> coupling = couple(apply, w, np.ones((1, 3), np.float32))
      >>> print(structure_report(coupling, {"0": np.array([True, False, True, False])}))
      | group |  units | parameters saved | FLOPs saved |
      |-------|--------|------------------|-------------|
      | 0     | 4 -> 2 |               10 |          20 |
      <BLANKLINE>
      parameters   20 -> 10 (50.0 %)
      bytes        80 -> 40 (50.0 %)
      FLOPs        40 -> 20 (50.0 %)
      activations  24 -> 16 (66.7 %)
      latency      not measured
    """
    coupling.vector(kept)
    groups = tuple(_diff(coupling, name, kept) for name in coupling.groups)
    times: list[Latency | None] = [None, None]
    if measure and variables is not None and _concrete(variables, inputs):
        times = [*_measured(coupling, [{}, kept], variables, inputs)]
    return StructureReport(groups, _size(coupling, {}), _size(coupling, kept), *times)


def milliseconds(
    coupling: Coupling, variables: Params, *inputs: PyTree, repeats: int = 20
) -> Callable[[Kept], float]:
    """The measured latency of the shrunk model as a cost, for `select.Budget`.

    Each set of units is shrunk, compiled and timed once; widths that were timed before are not
    timed again, so that a budget that was met stays met. The numbers hold for this machine as busy
    as it was.

    Args:
      coupling: from `couple`.
      variables: the dense variables.
      *inputs: what to call the model on.
      repeats: timed calls; the median counts.

    Returns:
      `kept -> median milliseconds`; `{}` is the dense model.

    Raises:
      ValueError, TypeError: see `structure_report`.

    Example:
      >>> from jaxprune import select
      >>> from jaxprune.coupling import couple
      >>> w = [np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)]
      >>> x = np.ones((1, 3), np.float32)
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, x)
      >>> within = select.Budget(milliseconds(coupling, w, x), at_most=1e3)
      >>> mask = select.lowest_units(coupling, budget=within)(w, w)
    """
    _check(coupling, variables, inputs)
    known: dict[tuple[int, ...], float] = {}

    def cost(kept: Kept) -> float:
        coupling.vector(kept)
        widths = tuple(
            int(np.sum(kept.get(name, np.ones(group.units))))
            for name, group in coupling.groups.items()
        )
        if widths not in known:
            [time] = _measured(coupling, [kept], variables, inputs, repeats)
            known[widths] = time.median_ms
        return known[widths]

    return cost


def unit_milliseconds(
    coupling: Coupling,
    variables: Params,
    *inputs: PyTree,
    widths: int = 3,
    repeats: int = 20,
) -> dict[str, np.ndarray]:
    """Measured latency that removing one unit saves, alike for all units of a group.

    Each group is timed at a few widths, all other groups being whole, in turns; the slope of a
    straight line through them is what a unit saves. This is NOISY: a unit's share may be less than
    what two calls differ by, and hardware takes widths in steps (a multiple of 8, of 128), so that
    one unit less may save nothing and eight save all. Use it to tell groups that cost time from
    groups that do not.

    Args:
      coupling: from `couple`.
      variables: the dense variables.
      *inputs: what to call the model on.
      widths: how many widths, from a quarter of the units to all; at least 2. Each is compiled.
      repeats: timed calls of each; the median counts.

    Returns:
      `{group: [units]}`, milliseconds, float64; 0 where fewer units were measured to be slower.

    Raises:
      ValueError, TypeError: see `structure_report`; or fewer than 2 widths.

    Example:
      >>> from jaxprune.coupling import couple
      >>> w = [np.ones((3, 4), np.float32), np.ones((4, 2), np.float32)]
      >>> x = np.ones((1, 3), np.float32)
      >>> coupling = couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, x)
      >>> unit_milliseconds(coupling, w, x, repeats=3)["0"].shape
      (4,)
    """
    if widths < 2:
        raise ValueError(f"`widths` is {widths}; a slope needs at least 2 widths.")
    _check(coupling, variables, inputs)
    found = {}
    for name, group in coupling.groups.items():
        whole, least = group.units, max(1, group.units // 4)
        counts = np.unique(np.linspace(least, whole, widths).round().astype(int))
        choices: list[Kept] = [{name: np.arange(whole) < count} for count in counts]
        times = [t.median_ms for t in _measured(coupling, choices, variables, inputs, repeats)]
        slope = np.polyfit(counts, times, 1)[0] if len(counts) > 1 else 0.0
        found[name] = np.full(whole, max(float(slope), 0.0))
    return found


def _diff(coupling: Coupling, name: str, kept: Kept) -> GroupDiff:
    before = coupling.groups[name].units
    alone = {name: kept[name]} if name in kept else {}
    return GroupDiff(
        name,
        before,
        int(np.sum(kept[name])) if alone else before,
        coupling.parameters() - coupling.parameters(alone),
        coupling.flops() - coupling.flops(alone),
    )


def _size(coupling: Coupling, kept: Kept) -> Size:
    costs = (coupling.parameters, coupling.bytes, coupling.flops, coupling.activations)
    return Size(*(cost(kept) for cost in costs))


def _concrete(*trees: PyTree) -> bool:
    return not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(trees))


def _check(coupling: Coupling, variables: Params, inputs: tuple[PyTree, ...]) -> None:
    """Raise unless the model can be called on these."""
    source = source_of(coupling)
    coupling.check(variables)
    if len(inputs) != len(source.inputs):
        raise ValueError(
            f"The model takes {len(source.inputs)} inputs besides its variables, got "
            f"{len(inputs)}: give what to time it on, or `measure=False`."
        )


def _measured(
    coupling: Coupling,
    choices: list[Kept],
    variables: Params,
    inputs: tuple[PyTree, ...],
    repeats: int = 20,
) -> list[Latency]:
    """Latencies of the model with several sets of units, in turns; without a set, of its code."""
    _check(coupling, variables, inputs)
    calls = []
    for kept in choices:
        whole = all(np.all(keep) for keep in kept.values())
        apply = source_of(coupling).apply if whole else shrunk_apply(coupling, kept)
        calls.append((apply, (shrink_units(variables, kept, coupling), *inputs)))
    return latencies(calls, repeats=repeats)


def _table(groups: tuple[GroupDiff, ...]) -> Any:
    from rich.box import MARKDOWN
    from rich.table import Table
    from rich.text import Text

    table = Table(box=MARKDOWN)
    table.add_column("group", overflow="fold")
    for name in ("units", "parameters saved", "FLOPs saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        units = f"{group.before:,} -> {group.after:,}"
        saved = f"{group.parameters:,}", f"{group.flops:,}"
        table.add_row(*map(Text, (group.name, units, *saved)))
    return table


def _lines(report: StructureReport) -> list[str]:
    lines = [
        _line(name, getattr(report.dense, field), getattr(report.shrunk, field))
        for name, field in (
            ("parameters", "parameters"),
            ("bytes", "bytes"),
            ("FLOPs", "flops"),
            ("activations", "activations"),
        )
    ]
    dense, shrunk, ratio = report.latency, report.shrunk_latency, report.speed_up
    if dense is None or shrunk is None or ratio is None:
        return [*lines, "latency      not measured"]
    return [
        *lines,
        f"latency      dense {rendering.milliseconds(dense)}, shrunk "
        f"{rendering.milliseconds(shrunk)}",
        f"             median (quartiles) of {dense.repeats} calls on {dense.device}",
        f"speed-up     measured {ratio:.2f} x, by FLOPs {report.flop_ratio:.2f} x",
    ]


def _line(name: str, dense: int, shrunk: int) -> str:
    share = f" ({100 * shrunk / dense:.1f} %)" if dense else ""
    return f"{name:<12} {dense:,} -> {shrunk:,}{share}"
