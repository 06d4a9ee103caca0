"""Runs the entry files in forked children: importing torch and Lightning once instead of in every test's process.

Reads lines of JSON {"entry", "argv", "out", "env"}; answers with the child's process id, and with its exit status when
it is gone. Nothing but imports happens here before a fork, so a child begins as a fresh process would.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
from typing import NoReturn

import clip_lightning.run.evaluate
import clip_lightning.run.train  # noqa: F401


def child(job: dict) -> NoReturn:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["env"])
    sys.path += job["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [job["entry"], *job["argv"]]
    code: object = 1
    try:
        runpy.run_path(job["entry"], run_name="__main__")
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
    pid = os.fork()
    if not pid:
        child(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
