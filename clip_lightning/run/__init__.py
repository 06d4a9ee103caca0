"""Assembles a run from the other rooms: its directory, its trackers, what it prints, training, and evaluation."""
