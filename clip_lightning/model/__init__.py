"""Models: two towers that map images and texts into one space."""
