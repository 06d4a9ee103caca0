"""Assembles a run from the other packages: directory, records and loggers, console, training, evaluation."""
