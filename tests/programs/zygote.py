"""Runs scripts in forks of itself, so that PyTorch is imported once: one JSON request a line, one exit code a line."""
# ruff: noqa: T201 - it answers on stdout

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import sklearn.datasets
import torch._dynamo

import unvanish.cli
import unvanish.torch.script

PRELOADED = (sklearn.datasets, torch._dynamo, unvanish.torch.script)


def run(request):
    os.chdir(request["cwd"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT), number)
    sys.argv = request["arguments"]
    if sys.argv[0] == "unvanish":
        unvanish.cli.main()
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(str(Path(sys.argv[0]).resolve()), run_name="__main__")


def child(request):
    code = 0
    try:
        run(request)
    except SystemExit as leave:
        code = leave.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
