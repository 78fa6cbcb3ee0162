"""Which cases ``--device all`` makes of one model on one host: one for every variant there. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchfleet.v1 import host_pb2
from benchfleet_controller.plan import DEVICES, Offer

_VERSION = re.compile(r":(\d+)$")


def offers_of(model: str, listed: Sequence[host_pb2.ModelVariant]) -> tuple[Offer, ...]:
    """By device in the order of `DEVICES`; a device with several variants (CUDA and WebGPU) has an offer for each.

    Of several versions of a variant the newest counts. A runtime that names no devices chooses for itself.
    """
    newest: dict[tuple[str, str], host_pb2.ModelVariant] = {}
    for one in listed:
        if model in (one.alias, one.variant) and one.device in DEVICES:
            key = (one.device, _VERSION.sub("", one.variant))
            if key not in newest or _version(one) > _version(newest[key]):
                newest[key] = one
    found = []
    for device in DEVICES:
        mine = sorted({one.variant for (where, _), one in newest.items() if where == device})
        found += [Offer(device, variant if len(mine) > 1 else model) for variant in mine]
    return tuple(found) or (Offer("", model),)


def _version(one: host_pb2.ModelVariant) -> int:
    found = _VERSION.search(one.variant)
    return int(found[1]) if found else 0
