from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout


def test_starting_the_agent_imports_no_model_library_and_no_database() -> None:
    heavy = {"openai", "foundry_local_sdk", "onnx", "onnxruntime", "gguf", "numpy", "duckdb", "httpx2"}
    code = f"import sys, benchfleet_agent.service, benchfleet_agent.host; print(sorted({heavy!r} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    heavy = {"grpc", "duckdb", "numpy", "rich", "asyncio"}
    code = f"import sys; from benchfleet_controller.cli import parser; parser(); print({heavy!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "set()"
