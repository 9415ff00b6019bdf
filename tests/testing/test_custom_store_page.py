"""The page on stores of one's own: its store is complete, short, and right."""

from __future__ import annotations

import re
from pathlib import Path

from tests.testing.nested import run

PAGE = Path(__file__).parents[2] / "docs" / "custom-store.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_store_of_the_page_passes_everything_that_the_page_runs(tmp_path: Path) -> None:
    """Contract, state machine and histories, as a reader would have them from copying the page."""
    module = tmp_path / "test_custom_store.py"
    module.write_text("\n\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")
    results = run(module)
    assert not results.failed, "\n".join(results.failed.values())
    assert len(results.passed) > 80
    assert {"TestDictStoreCalls::runTest", "test_each_method_is_one_step"} <= results.passed


def test_the_store_of_the_page_is_as_short_as_it_says() -> None:
    """Less than sixty lines of code, from its class statement on."""
    first = BLOCK.findall(PAGE.read_text(encoding="utf-8"))[0]
    lines = first[first.index("class DictStore") :].splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) < 60
