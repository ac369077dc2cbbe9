# SPDX-License-Identifier: MIT
"""
Runs the tests of the Python package, those without torch everywhere and the others where torch is. $TORCH_REQUIRED makes
its absence a failure. The closing line is like that of the other test programs.

    BUILD=build python3 tests/python/run.py [NAME...]       # test_session.Sleep.test_wake
"""
import importlib.util
import os
import sys
import unittest

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [here, os.path.join(here, "../../libgmsclient/python")]

loader = unittest.TestLoader()
tests = loader.loadTestsFromNames(sys.argv[1:]) if sys.argv[1:] else loader.discover(here, top_level_dir=here)
result = unittest.TextTestRunner(verbosity=2 if os.environ.get("V") else 1).run(tests)
failures, errors = len(result.failures) + len(result.unexpectedSuccesses), len(result.errors)
if importlib.util.find_spec("torch") is None:
    print("python: skipped: no torch: make deps-python")
    errors += 1 if os.environ.get("TORCH_REQUIRED") else 0
ran = result.testsRun - len(result.skipped)
print(f"{100 * (ran - failures - errors) // max(1, ran)}%: Checks: {ran}, Failures: {failures}, Errors: {errors}")
sys.exit(1 if failures or errors or not ran else 0)
