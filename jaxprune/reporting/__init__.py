"""The last stage: counts, bytes, FLOPs, milliseconds, tables, plots, sensitivity curves."""

from jaxprune.jaxpr.flops import flops, flops_by_operation, flops_skipping_zeros
from jaxprune.reporting.churn import MaskChange, append_changes, mask_changes
from jaxprune.reporting.curves import Sensitivity, sensitivity
from jaxprune.reporting.model_report import report
from jaxprune.reporting.plots import accuracy_plot, layer_plot, sensitivity_plot
from jaxprune.reporting.records import Cost, Report, Row, Totals
from jaxprune.reporting.rendering import as_text
from jaxprune.reporting.spread import mean_and_spread, paired_difference
from jaxprune.reporting.storage import bitmask_bytes, csr_bytes, dense_bytes, leaf_bytes
from jaxprune.reporting.structure_report import (
    StructureReport,
    milliseconds,
    structure_report,
    unit_milliseconds,
)
from jaxprune.reporting.tables import method_table, summarise
from jaxprune.reporting.timing import Latency, latencies, latency

__all__ = [
    "Cost",
    "Latency",
    "MaskChange",
    "Report",
    "Row",
    "Sensitivity",
    "StructureReport",
    "Totals",
    "accuracy_plot",
    "append_changes",
    "as_text",
    "bitmask_bytes",
    "csr_bytes",
    "dense_bytes",
    "flops",
    "flops_by_operation",
    "flops_skipping_zeros",
    "latencies",
    "latency",
    "layer_plot",
    "leaf_bytes",
    "mask_changes",
    "mean_and_spread",
    "method_table",
    "milliseconds",
    "paired_difference",
    "report",
    "sensitivity",
    "sensitivity_plot",
    "structure_report",
    "summarise",
    "unit_milliseconds",
]
