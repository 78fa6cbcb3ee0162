"""Values in the units of the metric registry, for people."""

from __future__ import annotations

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_SCALED = {"hz": (1e9, "GHz"), "ns": (1e9, "s"), "us": (1e6, "s"), "mj": (1e3, "J"), "uj": (1e6, "J"), "nj": (1e9, "J")}
_PLAIN = {"w": "W", "c": "°C", "1": "", "mask": "(bits)"}


def quantity(value: float, unit: str) -> str:
    """A value in a unit of the metric registry, for people: ``1.5 GiB``, ``2.52 GHz``, ``37 %``."""
    if unit == "bytes":
        power = 0
        while abs(value) >= 1024 and power < len(_BINARY) - 1:
            value, power = value / 1024, power + 1
        return f"{value:.{1 if power else 0}f} {_BINARY[power]}"
    if unit == "ratio":
        return f"{100 * value:.0f} %"
    if unit in _SCALED:
        divisor, word = _SCALED[unit]
        return f"{value / divisor:.2f} {word}"
    text = f"{value:.1f}".removesuffix(".0")
    return f"{text} {_PLAIN.get(unit, unit)}".strip()
