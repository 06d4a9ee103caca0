"""The hub is never reached from these tests."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
