"""These are users' scripts, run by test_script.py: nothing in here is a test, and importing them would run them."""

collect_ignore_glob = ["*.py"]
