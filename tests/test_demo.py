"""`multifsl demo` as a user runs it: offline, all three modalities, better than chance by far, and quick."""

import json
import subprocess
import sys

import pytest

from tests.needs import needs_minilm


@pytest.mark.xdist_group("readme")
def test_demo() -> None:
    needs_minilm()
    done = subprocess.run(
        [sys.executable, "-m", "multifsl.cli", "demo", "--json", "-"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    results = json.loads(done.stdout)
    assert list(results) == ["image", "speech", "text"]
    assert {k: r["classes"] for k, r in results.items()} == {"image": 5, "speech": 5, "text": 12}
    for result in results.values():
        assert result.keys() == {"accuracy", "ci95", "classes", "seconds"}
        assert result["accuracy"] > 0.7  # chance is 0.25 at most
        assert 0 < result["ci95"] < 0.05
    assert "not a result" in done.stderr and "added the class" in done.stderr
