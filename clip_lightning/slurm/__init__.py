"""Submission to SLURM, and the environment of its tasks."""
