"""Layouts of data on disk, and the index of tar shards."""
