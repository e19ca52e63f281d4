"""Tables over seeds: every cell is mean ± sample sd (n) of its own runs."""

import numpy as np
import pytest

from jaxprune.reporting import as_text, method_table, summarise


def runs(seeds=3):
    rng = np.random.default_rng(0)
    return [
        {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": rng.uniform(0.8, 0.99)}
        for seed in range(seeds)
        for method in ("obd", "magnitude")
        for sparsity in (0.9, 0.5)
    ]


def test_groups_hold_their_own_runs_in_order_of_method_and_sparsity():
    rows = runs()
    found = summarise(rows)
    order = [("obd", 0.5), ("obd", 0.9), ("magnitude", 0.5), ("magnitude", 0.9)]
    assert [(s.method, s.sparsity) for s in found] == order
    for method, sparsity, value in found:
        x = [r["accuracy"] for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)]
        np.testing.assert_allclose(value[:2], [np.mean(x), np.std(x, ddof=1)], rtol=1e-12)
        assert value.n == 3


def test_the_table_prints_mean_sd_and_n():
    rows = [
        {"method": "obd", "sparsity": 0.9, "seed": 0, "loss": 1.0},
        {"method": "obd", "sparsity": 0.9, "seed": 1, "loss": 2.0},
        {"method": "[bold]", "sparsity": 0.95, "seed": 0, "loss": 3.0},
    ]
    lines = as_text(method_table(rows, value="loss", digits=3)).splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[0] == ["method", "0.9", "0.95"]
    assert cells[2] == ["obd", "1.500 ± 0.707 (2)", "-"]
    assert cells[3] == ["[bold]", "-", "3.000 ± - (1)"]
    assert "nan" not in " ".join(lines)


def test_the_table_says_what_its_numbers_are():
    text = " ".join(as_text(method_table(runs(), title="MNIST")).split())
    assert "MNIST" in text
    assert "accuracy: mean ± sample standard deviation (n)" in text


def test_a_seed_that_appears_twice_is_an_error():
    rows = runs() + runs(1)[:1]
    with pytest.raises(ValueError, match=r"'obd' at sparsity 0\.9 has seed 0 more than once"):
        summarise(rows)


def test_a_missing_key_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match=r"Row 1 has no \['accuracy'\]; it has \['method', 'spars"):
        summarise([runs()[0], {"method": "obd", "sparsity": 0.5}])


def test_a_diverged_run_is_an_error_that_names_its_group():
    rows = runs()
    rows[0]["accuracy"] = float("nan")
    with pytest.raises(
        ValueError, match=r"'obd' at sparsity 0\.9: `values` holds nan at position 0"
    ):
        method_table(rows)
