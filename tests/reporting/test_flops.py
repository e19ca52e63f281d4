"""FLOPs against closed forms worked out by hand, and against XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxprune.jaxpr.flops import flops, flops_by_operation, flops_skipping_zeros

N, I, O, SIZE, K = 3, 4, 6, 9, 3


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(strides=1, padding="VALID", groups=1, dilation=1, input_dilation=1):
    def apply(kernel, x):
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides,) * 2,
            padding,
            lhs_dilation=(input_dilation,) * 2,
            rhs_dilation=(dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


CONVOLUTIONS = [
    # id, options, kernel (H W I/g O), output positions along one axis
    ("valid", {}, (K, K, I, O), 7),
    ("same", {"padding": "SAME"}, (K, K, I, O), 9),
    ("stride 2, valid", {"strides": 2}, (K, K, I, O), 4),
    ("stride 2, same", {"strides": 2, "padding": "SAME"}, (K, K, I, O), 5),
    ("groups", {"groups": 2}, (K, K, I // 2, O), 7),
    ("depthwise", {"groups": I}, (K, K, 1, 2 * I), 7),
    ("dilated", {"dilation": 2}, (K, K, I, O), 5),
    ("one by one", {}, (1, 1, I, O), 9),
]


@pytest.mark.parametrize(
    ("options", "kernel", "positions"),
    [c[1:] for c in CONVOLUTIONS],
    ids=[c[0] for c in CONVOLUTIONS],
)
def test_a_convolution_costs_output_positions_times_kernel_entries(options, kernel, positions):
    expected = 2 * N * positions**2 * int(np.prod(kernel))
    assert flops(conv(**options), abstract(*kernel), abstract(N, SIZE, SIZE, I)) == expected


@pytest.mark.parametrize("name", ["valid", "stride 2, valid", "groups", "depthwise", "dilated"])
def test_without_padding_the_count_is_that_of_xla(name):
    _, options, kernel, _ = next(c for c in CONVOLUTIONS if c[0] == name)
    args = abstract(*kernel), abstract(N, SIZE, SIZE, I)
    theirs = jax.jit(conv(**options)).lower(*args).cost_analysis()["flops"]
    assert flops(conv(**options), *args) == theirs


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_transposed_convolution_counts_input_positions_not_inserted_zeros(padding):
    def apply(kernel, x):
        return lax.conv_transpose(x, kernel, (2, 2), padding)

    ours = flops(apply, abstract(K, K, I, O), abstract(N, SIZE, SIZE, I))
    assert ours == 2 * N * SIZE * SIZE * K * K * I * O


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, "VALID")])
def test_both_gradients_of_a_convolution_cost_as_much_as_the_convolution(strides, padding):
    def loss(kernel, x):
        return jnp.sum(conv(strides, padding)(kernel, x) ** 2)

    args = abstract(K, K, I, O), abstract(N, SIZE, SIZE, I)
    assert flops(jax.grad(loss, (0, 1)), *args) == 3 * flops(loss, *args)


def test_batch_groups_are_counted_once_each():
    def apply(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=numbers, batch_group_count=2
        )

    # 4 examples in 2 groups: each output channel sees the 2 examples of its group
    ours = flops(apply, abstract(K, K, I, O), abstract(4, SIZE, SIZE, I))
    assert ours == 2 * 2 * 7 * 7 * K * K * I * O


@pytest.mark.parametrize(
    ("equation", "left", "right", "work"),
    [
        ("ij,jk->ik", (5, 3), (3, 7), 5 * 3 * 7),
        ("bij,bjk->bik", (2, 5, 3), (2, 3, 7), 2 * 5 * 3 * 7),
        ("bthd,bshd->bhts", (2, 5, 4, 3), (2, 7, 4, 3), 2 * 4 * 5 * 7 * 3),
        ("ijk,jkl->il", (5, 3, 2), (3, 2, 7), 5 * 3 * 2 * 7),
        ("i,i->", (5,), (5,), 5),
        ("ij,jk->ik", (0, 3), (3, 7), 0),
    ],
)
def test_a_product_costs_two_flops_per_multiply_add(equation, left, right, work):
    count = flops(lambda a, b: jnp.einsum(equation, a, b), abstract(*left), abstract(*right))
    assert count == 2 * work


@jax.custom_jvp
def squared_product(w, x):
    return (x @ w) ** 2


@squared_product.defjvp
def _(primals, tangents):
    return squared_product(*primals), tangents[0].sum() + tangents[1].sum()


@jax.custom_vjp
def custom_product(w, x):
    return x @ w


custom_product.defvjp(lambda w, x: (x @ w, None), lambda _, g: (g, g))


def product(w, x):
    return x @ w


WRAPPERS = {
    "jit": jax.jit(product),
    "jit in jit": jax.jit(lambda w, x: jax.jit(product)(w, x)),
    "remat": jax.checkpoint(product),
    "custom_jvp": squared_product,
    "custom_vjp": custom_product,
    "vmap": lambda w, x: jax.vmap(lambda row: row @ w)(x),
    "scan of rows": lambda w, x: lax.scan(lambda _, row: (None, row @ w), None, x)[1],
    "map": lambda w, x: lax.map(lambda row: row @ w, x),
}


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_changes_neither_the_count_nor_the_leaf(wrapped):
    count = flops_by_operation(wrapped, abstract(3, 7), abstract(5, 3))
    assert count.total == 2 * 5 * 3 * 7
    assert [op.leaf for op in count.operations] == [0]
    assert count.counted_once == ()


def test_rematerialised_work_counts_as_often_as_it_runs():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda w, x: jnp.sin(jnp.sin(x @ w) @ w))(w, x))

    plain = flops(
        jax.grad(lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))), *[abstract(4, 4)] * 2
    )
    again = flops(jax.grad(loss), *[abstract(4, 4)] * 2)
    assert again > plain


def test_scan_counts_its_length_and_nested_scans_multiply():
    def inner(x, w):
        return lax.fori_loop(0, 3, lambda _, c: c @ w, x)

    def apply(w, x):
        return lax.scan(lambda c, _: (inner(c, w), None), x, length=5)[0]

    assert flops(apply, abstract(4, 4), abstract(2, 4)) == 5 * 3 * 2 * 2 * 4 * 4


def test_cond_counts_its_most_expensive_branch():
    def apply(w, x, flag):
        return lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

    count = flops_by_operation(
        apply, abstract(4, 4), abstract(2, 4), jax.ShapeDtypeStruct((), bool)
    )
    assert count.total == 2 * (2 * 2 * 4 * 4)
    assert [op.leaf for op in count.operations] == [0, 0]


def test_a_while_loop_counts_one_pass_and_is_named():
    def apply(w, x):
        return lax.while_loop(lambda c: jnp.sum(c @ c.T) < 9, lambda c: c @ w, x)

    count = flops_by_operation(apply, abstract(4, 4), abstract(2, 4))
    assert count.total == 2 * 2 * 4 * 2 + 2 * 2 * 4 * 4
    assert count.counted_once == ("while",)
    assert [op.leaf for op in count.operations] == [None, 0]


def test_a_while_loop_without_products_is_not_worth_a_word():
    def apply(w, x):
        return lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + 1, x @ w)

    assert flops_by_operation(apply, abstract(4, 4), abstract(2, 4)).counted_once == ()


def test_shard_map_counts_all_devices():
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
    sharded = jax.shard_map(product, mesh=mesh, **specs)
    with jax.sharding.use_abstract_mesh(mesh):
        count = flops_by_operation(sharded, abstract(3, 7), abstract(8, 3))
    assert count.total == 2 * 8 * 3 * 7
    assert count.operations[0].leaf == 0


THROUGH = {
    "cast": lambda w: w.astype(jnp.bfloat16),
    "transpose": lambda w: jnp.swapaxes(w.T, 0, 1),
    "reshape": lambda w: w.reshape(-1).reshape(4, 4),
    "broadcast": lambda w: jnp.broadcast_to(w, (2, 4, 4)),
    "flip": lambda w: w[::-1],
    "jit": jax.jit(lambda w: w.astype(jnp.float16)),
}


@pytest.mark.parametrize("seen", THROUGH.values(), ids=THROUGH)
def test_a_leaf_is_recognised_through_what_keeps_its_entries(seen):
    count = flops_by_operation(
        lambda p, x: x @ seen(p["b"]), dict.fromkeys("abc", abstract(4, 4)), abstract(2, 4)
    )
    assert [op.leaf for op in count.operations] == [1]


HIDDEN = {
    "slice": lambda p, x: x @ p[0][:, :2],
    "arithmetic": lambda p, x: x @ (p[0] * 2),
    "two leaves": lambda p, x: p[0] @ p[1],
    "the same leaf twice": lambda p, x: p[0] @ p[0].T,
    "a kernel over another leaf": lambda p, x: conv()(
        p[1].reshape(4, 4, 1, 1), p[0].reshape(1, 4, 4, 1)
    ),
    "a leaf as the image": lambda p, x: conv()(x.reshape(2, 4, 1, 1), p[0].reshape(1, 4, 4, 1)),
    "no leaf": lambda p, x: x @ x.T,
    "a changing carry": lambda p, x: lax.scan(lambda c, _: (c + 1, x @ c), p[0], length=2)[1],
    "a masked leaf": lambda p, x: x @ jnp.where(p[1] > 0, p[0], 0),
}


@pytest.mark.parametrize("apply", HIDDEN.values(), ids=HIDDEN)
def test_what_is_not_one_leaf_stays_dense(apply):
    count = flops_by_operation(apply, [abstract(4, 4)] * 2, abstract(2, 4))
    nothing = [jnp.zeros((4, 4), bool)] * 2
    assert [op.leaf for op in count.operations] == [None]
    assert flops_skipping_zeros(count, nothing) == count.total > 0


def random_mask(seed, *shape):
    return np.random.default_rng(seed).random(shape) < 0.3


def test_skipping_zeros_multiplies_by_the_kept_weights_only():
    mask = [random_mask(0, 5, 7), random_mask(1, 7, 3)]
    x = abstract(11, 5)
    count = flops_by_operation(lambda p, x: jax.nn.relu(x @ p[0]) @ p[1], mask_like(mask), x)
    by_hand = 2 * 11 * np.count_nonzero(mask[0]) + 2 * 11 * np.count_nonzero(mask[1])
    assert flops_skipping_zeros(count, mask) == by_hand


@pytest.mark.parametrize("options", [{"strides": 2}, {"groups": 2}, {"padding": "SAME"}])
def test_skipping_zeros_of_a_kernel_counts_each_kept_entry_at_each_position(options):
    kernel = (K, K, I // options.get("groups", 1), O)
    mask = random_mask(2, *kernel)
    x = abstract(N, SIZE, SIZE, I)
    out = jax.eval_shape(conv(**options), abstract(*kernel), x)
    count = flops_by_operation(conv(**options), abstract(*kernel), x)
    positions = N * out.shape[1] * out.shape[2]
    assert flops_skipping_zeros(count, mask) == 2 * positions * np.count_nonzero(mask)


def test_skipping_zeros_of_a_stack_of_layers_counts_every_layer():
    mask = random_mask(3, 6, 4, 4)

    def apply(w, x):
        return lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    count = flops_by_operation(apply, mask_like(mask), abstract(2, 4))
    assert flops_skipping_zeros(count, mask) == 2 * 2 * np.count_nonzero(mask)


def test_counts_are_exact_integers_where_doubles_are_not():
    big = 2**27 + 1
    assert flops(product, abstract(big, 3), abstract(big, big)) == 2 * big * big * 3
    assert float(2 * big * big * 3) != 2 * big * big * 3


def test_an_empty_leaf_costs_nothing_and_divides_nothing():
    count = flops_by_operation(product, abstract(3, 0), abstract(5, 3))
    assert flops_skipping_zeros(count, np.ones((3, 0), bool)) == count.total == 0


def mask_like(mask):
    return jax.tree.map(lambda m: abstract(*m.shape), mask)
