"""How much decoded data the evaluators of a rank keep in memory between runs."""

CACHE_BYTES = 2**30


class MemoryBudget:
    """Bytes that all evaluators of a rank may keep together."""

    def __init__(self, num_bytes: int = CACHE_BYTES) -> None:
        """Args: num_bytes: the total."""
        self.free = num_bytes

    def reserve(self, num_bytes: int) -> bool:
        """Takes bytes from the budget; False, and nothing taken, where fewer are left."""
        if num_bytes > self.free:
            return False
        self.free -= num_bytes
        return True

    def release(self, num_bytes: int) -> None:
        """Returns bytes that were reserved."""
        self.free += num_bytes
