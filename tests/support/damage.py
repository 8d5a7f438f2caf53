"""Files that were damaged."""


def flipped(data: bytes) -> bytes:
    """The same bytes with another last one, whatever it was."""
    return data[:-1] + bytes([data[-1] ^ 255])
