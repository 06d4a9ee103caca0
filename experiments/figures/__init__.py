"""Figures of runs and of the paper, one runnable module each."""
