"""Sweeps: their cells, table and metrics."""
