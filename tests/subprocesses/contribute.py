"""Forks a process for each folder named on the standard input, which contributes to an intake there until it is killed.

To each folder there are two answers, a line each: the process's number, and its wait status when it has ended. The imports
happen once; JAX starts its threads at the first computation, which is in the forked process.
"""

import os
import sys
import traceback
from pathlib import Path

import killed_intakes

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            killed_intakes.contribute(Path(line.strip()))
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
