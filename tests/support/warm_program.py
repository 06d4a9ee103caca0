"""Runs entry files and modules in forked children: importing torch and Lightning once, not in every test's process.

Reads lines of JSON {"entry", "argv", "out", "cwd", "env"}, where "entry" is a file or "-m MODULE" and "env" has the
variables of each rank; answers with the children's process ids, and with the first one's exit status when all are
gone. Nothing but imports happens here before a fork, so a child begins as a fresh process would.
"""

import contextlib
import faulthandler
import json
import os
import resource
import runpy
import signal
import sys
from typing import NoReturn

import clip_lightning.run.evaluate
import clip_lightning.run.train  # noqa: F401


def child(job: dict, variables: dict[str, str]) -> NoReturn:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ.update(variables)
    faulthandler.enable()  # a crash prints where it was
    if largest := int(variables.get("LARGEST_FILE", 0)):  # as on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.path += variables.get("PYTHONPATH", "").split(os.pathsep)
    module = job["entry"].removeprefix("-m ")
    sys.argv = [module, *job["argv"]]
    code: object = 1
    try:
        if module != job["entry"]:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(module, run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


for line in sys.stdin:
    job, children = json.loads(line), []
    for variables in job["env"]:
        children.append(os.fork())
        if not children[-1]:
            child(job, variables)
    print(*children, flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]
    print(codes[0], flush=True)
