"""Programs beside the library: figures, studies, benchmarks. Left out of the wheel."""
