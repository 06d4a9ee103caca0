"""One function per figure: a table in, a matplotlib figure out. No global state, no display, one style."""
