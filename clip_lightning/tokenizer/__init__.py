"""Text to token ids: one file per kind (the paper's BPE, Hugging Face, trained on the run's captions), one protocol.

Imports no torch. A run keeps every file of its tokenizer and reads them from there (`files.py`).
"""

import os

# Loader workers are processes already; threads inside them are slower, and forking after their start may deadlock.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from clip_lightning.tokenizer.build import build_tokenizer, load_tokenizer
from clip_lightning.tokenizer.hugging_face import use_hub_cache_when_offline
from clip_lightning.tokenizer.tokenizer import TextEncoder, TokenBatch, Tokenizer

__all__ = [
    "TextEncoder",
    "TokenBatch",
    "Tokenizer",
    "build_tokenizer",
    "load_tokenizer",
    "use_hub_cache_when_offline",
]
