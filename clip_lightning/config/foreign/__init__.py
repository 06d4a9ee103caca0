"""Architectures that files of other libraries describe, as `ModelConfig`. Imports no torch.

A file that leaves open what the features depend on (the activation of a bare state dict) is not guessed: the error
says what to set.
"""
