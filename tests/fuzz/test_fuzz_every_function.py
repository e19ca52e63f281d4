"""Every public function is fuzzed, or listed here with the reason why it is not."""

import jaxprune as jp
from tests.fuzz import (
    test_fuzz_models,
    test_fuzz_prune,
    test_fuzz_schedule,
    test_fuzz_select,
    test_fuzz_storage,
    test_fuzz_surgeon,
    test_fuzz_trees,
    test_fuzz_units,
)

TABLES = (
    test_fuzz_models,
    test_fuzz_prune,
    test_fuzz_schedule,
    test_fuzz_select,
    test_fuzz_storage,
    test_fuzz_surgeon,
    test_fuzz_trees,
    test_fuzz_units,
)
DATA = "a class of data, made and read by the functions"
TIMES = "measures milliseconds, which have no law"
DRAWS = "writes a picture: tests/reporting/test_plots.py"
COUNTS = "reads a jaxpr, not a tree: tests/reporting/test_flops.py"
NOT_FUZZED = {
    "Coupling Diagonal Pruned Pruner Saliency Selection Stats": DATA,
    "types.Apply types.Diagonal types.Formed types.GradientMoments types.LayerMoments": DATA,
    "types.Loss types.Pruned types.Pruner types.Saliency types.Selection types.Stats": DATA,
    "coupling.Coupling coupling.Group coupling.Member": DATA,
    "curvature.FactoredFisher curvature.Likelihood surgeon.Effort surgeon.LocalModel": DATA,
    "quantize.Codebook quantize.Grid quantize.LeafBytes quantize.Plain quantize.Quantized": DATA,
    "quantize.Quantizer quantize.StoredBytes": DATA,
    "reporting.Cost reporting.Latency reporting.MaskChange reporting.Report reporting.Row": DATA,
    "reporting.Sensitivity reporting.StructureReport reporting.Totals": DATA,
    "structure.Check structure.Dead structure.Merged structure.Reconstructed": DATA,
    "structure.Ways transforms.MaskState transforms.RegrowState transforms.RemovalState": DATA,
    "checkpoint.Damaged": "an error, raised in tests of damaged checkpoints",
    "reporting.latencies reporting.latency reporting.milliseconds": TIMES,
    "reporting.unit_milliseconds": TIMES,
    "reporting.accuracy_plot reporting.layer_plot reporting.sensitivity_plot": DRAWS,
    "reporting.flops reporting.flops_by_operation reporting.flops_skipping_zeros": COUNTS,
    "max_pool": "takes no tree: tests/test_pooling.py has random windows",
    "shrink_module": "takes a module, not a tree: tests/structure/test_nnx_modules.py",
}


def public():
    """The public callables by name, and the object that each is."""
    found = {}
    for name in jp.__all__:
        value = getattr(jp, name)
        if not hasattr(value, "__spec__"):
            found[name] = value
            continue
        members = getattr(value, "__all__", None) or [
            n for n, o in vars(value).items()
            if not n.startswith("_") and getattr(o, "__module__", "") == value.__name__
        ]  # fmt: skip
        found |= {f"{name}.{n}": getattr(value, n) for n in members}
    return {name: value for name, value in found.items() if callable(value)}


def test_every_public_function_has_a_law_or_a_reason():
    rows = [name for table in TABLES for name in table.LAWS]
    assert len(rows) == len(set(rows))
    excused = [name for names in NOT_FUZZED for name in names.split()]
    functions = public()
    assert set(rows) <= set(functions), f"Not public: {sorted(set(rows) - set(functions))}."
    # A function has several names: at the top, and in its stage.
    fuzzed = {id(functions[name]) for name in rows}
    missing = {n for n, f in functions.items() if id(f) not in fuzzed} - set(excused)
    assert not missing, f"Give a row of a table in tests/fuzz, or a reason, to {sorted(missing)}."
    gone = [name for name in excused if name not in functions]
    both = [name for name in excused if name in rows]
    assert not gone + both, f"No longer public, or fuzzed by now: {gone + both}."
