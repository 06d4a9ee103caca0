"""What keeps a run from being lost: checkpoints written whole or not at all, signals heeded between two steps."""
