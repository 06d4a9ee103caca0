"""Weights between this project's models and other libraries', in both directions.

A converter changes names and layouts of tensors, never a number: a round trip gives the same bits.
"""
