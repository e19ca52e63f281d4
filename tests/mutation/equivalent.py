"""Mutants that no test can tell from the original, and why; reviewed by hand."""

_ENDS = "below and above its ends a rise is clipped to `initial` and `final` once more"
_NEVER = "the condition is never true, whatever the bounds: it only reads the leaf"
_COPIES = "`jnp.array` copies by default"
_NEAREST = "only the nearest name is told, which is the first"

EQUIVALENT: dict[str, str] = {
    "schedule.py/_rise.at: 0.0 -> -1.0": _ENDS,
    "schedule.py/_rise.at: 0.0 -> -1.0 #2": _ENDS,
    "schedule.py/_rise.at: 0 -> -1 #2": "every shape is exactly 0 at 0",
    "trees.py/kept_whole: leaf < -1 -> leaf <= -1": _NEVER,
    "trees.py/kept_whole: -1 -> 1": _NEVER,
    "trees.py/kept_whole: 1 -> 2": _NEVER,
    "trees.py/kept_whole: 1 -> 0": _NEVER,
    "trees.py/kept_whole: leaf > 1 -> leaf >= 1": _NEVER,
    "trees.py/kept_whole: 1 -> 2 #2": _NEVER,
    "trees.py/kept_whole: 1 -> 0 #2": _NEVER,
    "trees.py/on_host: return False -> return None": "only its truth is read",
    "trees.py/check_sparsity: 8 -> 7": "no dtype has 7 bytes",
    "trees.py/totals: 0 -> 1": "all flags have the shape of the first",
    "trees.py/totals: 0 -> -1": "all flags have the shape of the first",
    "trees.py/total: 0 -> -1": "there is one total",
    "select/ranking.py/check_scope: 1 -> 2": _NEAREST,
    "select/ranking.py/leaf_sparsities: 1 -> 2": _NEAREST,
    "select/pattern.py/blocks.pooled: 0 -> -1 #2": "the axis has one entry",
    "select/pattern.py/blocks.pooled: 0 -> -1 #3": "the axis has one entry",
    "select/threshold.py/keep_largest: jnp.ones -> jnp.zeros": "there are no entries",
    "select/units.py/_first: jnp.zeros -> jnp.ones": "every entry is set",
    "select/units.py/lowest_units.at: 1 -> 2": "a global ranking has no output axis",
    "structure/merging.py/merge_pairs: 1 -> 2 #3": "NumPy reads every negative size as -1",
    "structure/profiles.py/reinitialise: 1 -> 0": "times the root of 1 is the same bits",
    "structure/profiles.py/reinitialise: coupling.check(fresh) -> pass": (
        "`shrink_units` checks the same"
    ),
    "structure/recalibration.py/_places: 0 -> -1": "there is one, or an error",
    "structure/reconstruction.py/_least_squares: True -> False": "a Gram matrix is symmetric",
    "structure/ways.py/_uses: 0 -> -1 #3": "a move has one result",
    "transforms/mask_state.py/_placed_copy: jnp.array(mask, copy=True) -> jnp.array(mask)": _COPIES,
    "transforms/mask_state.py/wide_dtype: return jnp.promote_types(trees.dtype_of(update),"
    " trees.dtype_of(param)) -> return None": "`where` and a difference promote alike",
    "transforms/regrowing.py/regrow.init: jnp.array(keys[1], copy=True) -> jnp.array(keys[1])": (
        _COPIES
    ),
    "transforms/regrowing.py/regrow.start: True -> False": "`apply_mask` says the same",
    "transforms/removing.py/remove_units: group.units - floor -> group.units + floor": (
        "the ranking gives no more than its own floor allows"
    ),
    "transforms/through.py/_hidden: jnp.array(leaf, copy=True) -> jnp.array(leaf)": _COPIES,
}
