"""The benchmark runs, and what it prints can be used; how fast anything was is not asked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not shutil.which("wrk"), reason="there is no wrk: apt-get install wrk")


@pytest.mark.slow
def test_quick_benchmark(tmp_path):
    """Every server answers every operation with 2xx, and each figure is there."""
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    command = [sys.executable, "-m", "bench", "--quick", "--json", str(figures), "--svg", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["requests"].keys() == found["floor"].keys() == {"read", "list 50", "create", "complete"}
    for servers in found["requests"].values():
        assert servers.keys() == {"taskctl", "Starlette", "SQLModel"}
        assert all(cost > 0 for server in servers.values() for cost in server.values())
    for name in ("contention", "growth", "users", "workers", "plans", "idle_mebibytes", "startup"):
        assert found[name], name
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")  # noqa: S314 - our own
