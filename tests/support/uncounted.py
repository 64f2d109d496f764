"""Imported first by a server of forked processes: the lines that they run are not counted by coverage.

Counting takes half as long again, and tests that run a stage a dozen times add no line to those that run it once.
"""

import os

from coverage import Coverage

for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
    del os.environ[name]  # of the forked processes too
if counting := Coverage.current():
    counting.stop()
