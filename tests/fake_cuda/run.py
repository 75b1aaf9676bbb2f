"""Tests run on the pretended GPU: python run.py LIBRARY RESULTS NODE...

LIBRARY is that of device.cpp. RESULTS is a JSON file: for each test its outcome and the text of a failure.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

library, results, *nodes = sys.argv[1:]
ctypes.CDLL(library)  # before torch is imported
sys.path[:0] = [str(Path(__file__).parents[1])]

import pytest  # noqa: E402

from fake_cuda import pretended  # noqa: E402


class Results:
    """Outcomes of a pytest run."""

    def __init__(self):
        self.by_node = {}

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or not report.passed:
            self.by_node[report.nodeid] = report.outcome, report.longreprtext


pretended.install()
found = Results()
code = pytest.main(['-p', 'no:cacheprovider', '--capture=sys', '-m', '', *nodes], [found])  # slow ones too
Path(results).write_text(json.dumps(found.by_node), encoding='utf-8')
sys.stdout.flush()
os._exit(code)
