"""Studies that compare models, one runnable module each."""
