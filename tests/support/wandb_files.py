"""W&B's own files, read back: the package has no reader of its own."""

import struct
from pathlib import Path
from typing import Any


def wandb_records(path: Path) -> list[Any]:
    """The records in W&B's own file: a LevelDB log behind a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Stored

    data, position, part, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            found.append(Stored.FromString(part))
            part = b""
    return found
