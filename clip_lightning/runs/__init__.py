"""The registry of runs, from their directories alone: list, choose, show, export and compare them."""
