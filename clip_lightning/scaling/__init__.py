"""Scaling laws: plan, collect, fit, check, recommend, compare. Tables in, tables out; no torch."""
