"""Configuration: the typed schema, its composition, its checks, and the identity of a run. Imports no torch."""
