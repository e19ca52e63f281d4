"""Large-sparse against small-dense: tasks, runs, tables."""
