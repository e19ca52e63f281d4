"""Plots: real PNG files, nothing global touched, and what is drawn is what was measured."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from jaxprune.reporting import (
    Sensitivity,
    accuracy_plot,
    layer_plot,
    plots,
    report,
    sensitivity_plot,
)

ROWS = [
    {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": base - sparsity / 5 + noise}
    for method, base in (("obd", 0.95), ("magnitude", 0.90))
    for sparsity in (0.5, 0.8, 0.9)
    for seed, noise in enumerate((-0.01, 0.0, 0.01))
]
CURVES = Sensitivity(("a/kernel", "b/kernel"), (0.1, 0.5), ((0.9, 0.8), (0.7, 0.2)), 0.95)


def small_report():
    params = {"a": jnp.ones((4, 4)), "b_$_c": jnp.ones((2, 8)), "bias": jnp.ones(3)}
    mask = {
        "a": jnp.eye(4, dtype=bool),
        "b_$_c": jnp.ones((2, 8), bool),
        "bias": jnp.ones(3, bool),
    }
    return report(params, mask)


DRAWN = {
    "accuracy": lambda path: accuracy_plot(ROWS, path, title="accuracy"),
    "layers": lambda path: layer_plot(small_report(), path),
    "sensitivity": lambda path: sensitivity_plot(CURVES, path, ylabel="accuracy"),
}


@pytest.fixture
def axes_drawn(monkeypatch):
    """The axes of every figure that is saved."""
    saved = []
    save = plots._save

    def spy(figure, path):
        saved.append(figure.axes[0])
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", spy)
    return saved


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_plot_is_a_png_with_something_on_it(draw, tmp_path):
    path = draw(tmp_path / "figure.png")
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 200
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 10


def test_accuracy_lines_are_means_and_bands_are_one_standard_deviation(axes_drawn, tmp_path):
    accuracy_plot(ROWS, tmp_path / "figure.png")
    (axes,) = axes_drawn
    obd = axes.lines[0]
    np.testing.assert_allclose(obd.get_xdata(), [0.5, 0.8, 0.9])
    np.testing.assert_allclose(obd.get_ydata(), [0.85, 0.79, 0.77], rtol=1e-12)
    assert obd.get_label() == "obd (n = 3)"
    edges = axes.collections[0].get_paths()[0].vertices
    at_start = edges[np.isclose(edges[:, 0], 0.5), 1]
    np.testing.assert_allclose([at_start.min(), at_start.max()], [0.84, 0.86], rtol=1e-12)


def test_layer_bars_are_the_sparsities_of_prunable_leaves(axes_drawn, tmp_path):
    layer_plot(small_report(), tmp_path / "figure.png")
    (axes,) = axes_drawn
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b_$_c"]


def test_sensitivity_lines_are_the_curves_and_the_baseline(axes_drawn, tmp_path):
    sensitivity_plot(CURVES, tmp_path / "figure.png")
    (axes,) = axes_drawn
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"a/kernel": [0.9, 0.8], "b/kernel": [0.7, 0.2], "unpruned": [0.95, 0.95]}


def test_many_lines_all_look_different():
    styles = {tuple(sorted(plots._style(i).items())) for i in range(160)}
    assert len(styles) == 160


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="`rows` is empty"):
        accuracy_plot([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="`value` is empty"):
        accuracy_plot([{"method": "a"}], tmp_path / "figure.png", value=[])


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxprune\[experiments\]"):
        accuracy_plot(ROWS, tmp_path / "figure.png")


PROGRAM = """
import sys
import jax
before = set(sys.modules)
from jaxprune.reporting import Sensitivity, sensitivity_plot
assert "matplotlib" not in set(sys.modules) - before, "imported before a plot is drawn"
sensitivity_plot(Sensitivity(("a",), (0.5,), ((1.0,),), 1.0), sys.argv[1])
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""


def test_matplotlib_is_imported_on_drawing_and_pyplot_never(tmp_path):
    file = tmp_path / "figure.png"
    command = [sys.executable, "-c", PROGRAM, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.exists()
