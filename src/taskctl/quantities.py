"""Numbers with a unit, as people write them: durations and sizes. Standard library only."""

import re
from collections.abc import Mapping

_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1.0,
    "b": 1.0,
    "kb": 1000.0,
    "mb": 1000.0**2,
    "gb": 1000.0**3,
    "kib": 1024.0,
    "mib": 1024.0**2,
    "gib": 1024.0**3,
}


def seconds(text: str) -> float:
    """A duration such as `90`, `500ms`, `30s`, `15m`, `1h` or `7d`, in seconds; ValueError otherwise."""
    return _quantity(text, _SECONDS)


def size(text: str) -> int:
    """A size such as `4096`, `256KiB` or `1.5MB`, in bytes; ValueError otherwise."""
    number = _quantity(text, _BYTES)
    if not number.is_integer():
        raise ValueError("not a whole number of bytes")
    return int(number)


def _quantity(text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError("not a number with a known unit")
    return float(match[1]) * units[match[2].lower()]
