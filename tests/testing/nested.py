"""Runs a made-up test module with pytest inside pytest, and tells what became of each test."""

from __future__ import annotations

from pathlib import Path

import pytest


class Results:
    """Which tests passed, failed or were skipped, by their names within the module."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: dict[str, str] = {}
        self.skipped: set[str] = set()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave out the rest of a class of which one test has failed: that is all there is to know."""
        suite = item.nodeid.partition("::")[2].rpartition("::")[0]
        if suite and any(name.startswith(f"{suite}::") for name in self.failed):
            pytest.skip("another test of this class has failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.failed:
            self.failed[name] = report.longreprtext
        elif report.skipped:
            self.skipped.add(name)
        elif report.when == "call":
            self.passed.add(name)


def run(path: Path, *options: str) -> Results:
    """Run one test module, apart from this project's own settings."""
    results = Results()
    settings = ["-c", str(path.parent / "none.ini"), "--rootdir", str(path.parent), "--import-mode=importlib", "-q"]
    without = [f"-pno:{name}" for name in ("cacheprovider", "randomly", "timeout")]
    (path.parent / "none.ini").write_text("[pytest]\n")
    code = pytest.main([*settings, *without, *options, str(path)], plugins=[results])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return results
