"""Flax NNX modules shrunk in place: their arrays, and the widths that they keep beside them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.coupling import Coupling
from jaxprune.coupling.groups import Kept
from jaxprune.coupling.models import source_of
from jaxprune.nnx_modules import layers
from jaxprune.nnx_modules.comparing import compare, example
from jaxprune.nnx_modules.layers import Flags, NoRule, shapes_of
from jaxprune.structure import shrink
from jaxprune.structure.dead import dead_units
from jaxprune.types import Mask, PyTree

Widths = Callable[[Any, dict[str, tuple[int, ...]]], Mapping[str, Any]]
"""`(module, old shapes of its variables by name) -> its new attributes`."""


def shrink_module(
    model: Any,
    mask: Mask,
    coupling: Coupling,
    *others: PyTree,
    optimizer: Any = None,
    widths: Mapping[type, Widths] | None = None,
    call: Callable[..., Any] | None = None,
    inputs: Any = None,
) -> tuple[PyTree, ...] | None:
    """Shrink an NNX module in place, so that `model(x)` is what the masked model was.

    Variables are sliced as `shrink` does, and the layers of `flax.nnx` get their new widths:
    `in_features`, `num_heads`, `num_groups` and the like. A module of another type that keeps an
    old width is refused by name, unless `widths` says what to set. Before anything is changed a
    copy is shrunk and run beside the sliced model, on random numbers: code that would compute
    something else (a width written in the code, a scale by the number of features) is refused
    too. `shrunk_apply` can run such models.

    Args:
      model: the module.
      mask: of the structure of its state, bool, True = kept.
      coupling: of that state, from `graphdef, state = nnx.split(model)` and
        `couple(lambda state, x: nnx.merge(graphdef, state)(x), state, x)`. It stays the dense
        model's; couple the shrunk one anew to go on.
      *others: pytrees that are sliced likewise, such as `nnx.state(optimizer)`.
      optimizer: the Optax optimizer, see `shrink`.
      widths: for modules of your own, by type: a function of the module, its variables being small
        already, and their old shapes (`{"kernel": (5, 8)}`, those of submodules by their path),
        that returns the new values of its attributes. It is asked before the rules for Flax's
        own layers.
      call: how the coupled function calls the module, `call(model, *inputs) -> outputs` (default:
        `model(*inputs)`).
      inputs: what to compare on, a tuple, or the only input (default: normal numbers, zeros and
        ones for integers, of the shapes that were coupled).

    Returns:
      The sliced `others` in a tuple; None without others.

    Raises:
      ValueError: a module that is refused, with its path, type and attribute; see `shrink`. The
        model is then as it was.
      TypeError: no NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxprune.coupling import couple
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> graphdef, state = nnx.split(model)
      >>> coupling = couple(lambda s, x: nnx.merge(graphdef, s)(x), state, jnp.ones((1, 3)))
      >>> mask = coupling.mask({"layers/0": np.arange(8) < 5}, state)
      >>> shrink_module(model, mask, coupling)
      >>> model.layers[0].out_features, model.layers[2].kernel.shape, model(jnp.ones((4, 3))).shape
      (5, (5, 2), (4, 2))
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` is a {type(model).__name__}, not an NNX module. Shrink the variables of "
            "other models by `structure.shrink`, and run them by `coupling.shrunk_apply`."
        )
    graphdef, state = nnx.split(model)
    source = source_of(coupling)
    coupling.check(state)
    call = call or (lambda model, *inputs: model(*inputs))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = shrink(state, mask, coupling, *others, optimizer=optimizer)
    for warning in caught:
        warnings.warn(str(warning.message), stacklevel=2)  # whose line is the caller's
    small = result[0] if others else result
    kept = dead_units(state, mask, coupling).kept
    trial = nnx.merge(graphdef, small)
    slices = _slices(graphdef, state, coupling, kept)
    changes = _changes(trial, slices, widths or {})
    _set(trial, changes)
    if inputs is None:
        inputs = jax.tree.map(example, source.inputs)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    counts = {group.units for name, group in coupling.groups.items() if not kept[name].all()}
    compare((model, trial), small, coupling, kept, call, inputs, _suspects(trial, slices, counts))
    _set(model, changes)
    nnx.update(model, small)
    return tuple(result[1:]) if others else None


def _modules(model: Any) -> list[Any]:
    """The module and all below it, each once, in a fixed order."""
    from flax import nnx

    return [module for _, module in nnx.iter_modules(model)]


def _set(model: Any, changes: list[dict[str, Any]]) -> None:
    for module, attributes in zip(_modules(model), changes, strict=True):
        for name, value in attributes.items():
            setattr(module, name, value)


class _Slices(NamedTuple):
    """Kept slices by name of a variable and axis: of all below a module, and of its own."""

    below: Flags
    own: Flags

    def changed(self, *, own: bool = False) -> set[int]:
        """The lengths of axes that lose slices."""
        leaves = (self.own if own else self.below).values()
        return {len(keep) for axes in leaves for keep in axes if not keep.all()}


def _slices(graphdef: Any, state: Any, coupling: Coupling, kept: Kept) -> list[_Slices]:
    """For every module of a model."""
    from flax import nnx

    flags = coupling.vector(kept)
    leaves = [tuple(flags[ids] for ids in axes) for axes in coupling.labels]
    numbers = [np.int32(n) for n in range(len(leaves))]
    numbered = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), numbers))
    found = []
    for module in _modules(numbered):
        below = list(_below(module, True, ()))
        found.append(
            _Slices(
                {name: leaves[int(n)] for name, n, _ in below},
                {name: leaves[int(n)] for name, n, own in below if own},
            )
        )
    return found


def _below(node: Any, own: bool, inside: tuple[int, ...]) -> Iterator[tuple[str, Any, bool]]:
    """(path, value, whether no other module holds it) of all variables and arrays below a node."""
    from flax import nnx

    if isinstance(node, nnx.Variable):
        node = node.get_value()
    if isinstance(node, jax.Array | np.ndarray | np.generic):
        yield "", node, own
        return
    children: Mapping[Any, Any] = {}
    if isinstance(node, nnx.Pytree):
        children = {k: v for k, v in vars(node).items() if not k.startswith("_pytree__")}
        own = own and (not inside or isinstance(node, nnx.List | nnx.Dict))
    elif isinstance(node, Mapping):
        children = node
    elif isinstance(node, list | tuple):
        children = dict(enumerate(node))
    for key, child in children.items():
        if id(child) not in inside:  # a module that holds one it is in
            for name, value, mine in _below(child, own, (*inside, id(node))):
                yield f"{key}/{name}".rstrip("/"), value, mine


def _changes(
    model: Any, slices: list[_Slices], widths: Mapping[type, Widths]
) -> list[dict[str, Any]]:
    """New attributes of every module.

    Raises:
      ValueError: modules that cannot be told their new widths.
    """
    from flax import nnx

    rules = layers.rules()
    found: list[dict[str, Any]] = []
    refused: list[str] = []
    for (path, module), here in zip(nnx.iter_modules(model), slices, strict=True):
        found.append({})
        if not here.changed():
            continue
        kinds = type(module).__mro__
        whole = {n: tuple(np.ones_like(k) for k in axes) for n, axes in here.below.items()}
        asked = next((widths[kind] for kind in kinds if kind in widths), None)
        if asked is not None:
            found[-1] = dict(asked(module, shapes_of(whole)))
            unknown = [name for name in found[-1] if not hasattr(module, name)]
            refused += [f"{_title(path, module)} has no `{name}` to set" for name in unknown]
            continue
        rule: layers.Rule = next((rules[k] for k in kinds if k in rules), lambda module, kept: {})
        try:
            stale = [
                f"keeps `{name}` = {getattr(module, name)!r} where its variables say {value!r}"
                for name, value in rule(module, whole).items()
                if _frozen(getattr(module, name)) != value
            ]
            found[-1] = rule(module, here.below)
        except NoRule as error:
            stale = [str(error)]
        stale += [
            f"keeps `{name}` = {getattr(module, name)!r}, a length that its variables lose"
            for name in _integers(module, here.changed(own=True))
        ]
        refused += [f"{_title(path, module)} {text}" for text in stale]
    if refused:
        raise ValueError(
            f"The model was not changed: {'; '.join(refused)}. Say by `widths={{type: function}}` "
            "what its attributes shall be, or run the variables that `structure.shrink` returns "
            "by `coupling.shrunk_apply`."
        )
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _title(path: tuple[Any, ...], module: Any) -> str:
    return f"{'.'.join(map(str, path)) or 'the model'} ({type(module).__qualname__})"


def _integers(module: Any, lengths: set[int]) -> list[str]:
    """Attributes that hold one of these lengths, of a module that is not Flax's own."""
    flax = [kind for kind in type(module).__mro__ if kind.__module__.startswith("flax.nnx")]
    if flax[0] is type(module):
        return []
    known = set(inspect.signature(flax[0]).parameters)

    def holds(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(map(holds, value))
        return isinstance(value, int) and not isinstance(value, bool) and value in lengths

    return [name for name, value in vars(module).items() if name not in known and holds(value)]


def _suspects(model: Any, slices: list[_Slices], counts: set[int]) -> str:
    """Attributes that are a length of an axis that gets shorter, or a number of units, as text."""
    from flax import nnx

    found = [
        f"`{name}` = {getattr(module, name)!r} of {_title(path, module)}"
        for (path, module), here in zip(nnx.iter_modules(model), slices, strict=True)
        for name in _integers(module, here.changed() and here.changed() | counts)
    ]
    return f"It may be {', '.join(found)}." if found else "Its code may have a width written in it."
