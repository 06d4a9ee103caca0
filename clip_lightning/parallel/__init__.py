"""How a model is spread over devices and made to fit them: one function per kind, applied from outside."""
