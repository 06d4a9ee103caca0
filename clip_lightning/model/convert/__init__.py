"""Weights between this project's models and other libraries'."""
