from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def _dependencies() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def test_the_protobuf_floor_is_the_generators() -> None:
    generated = (ROOT / "proto/benchfleet/v1/event_pb2.py").read_text()
    version = re.search(r"Protobuf Python Version: ([\d.]+)", generated)

    assert version is not None
    assert f"protobuf>={version[1]}" in _dependencies()


def test_the_grpc_floor_is_the_generators() -> None:
    generated = (ROOT / "proto/benchfleet/v1/agent_service_pb2_grpc.py").read_text()
    version = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", generated)

    assert version is not None
    assert f"grpcio>={version[1]}" in _dependencies()
