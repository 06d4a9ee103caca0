"""Shards in a store: the local cache and prefetching."""
