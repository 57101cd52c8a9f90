"""Runs tools/train.py's main in forks of one process, so that many starts and kills pay for the imports once.

Its arguments are the hosts that it imports.

Reads jobs from stdin, one JSON object a line: argv, log (a file for stdout and stderr), env, ranks, and kill: how the
first rank kills itself with SIGKILL, or another ``signal``, at the ``count``-th audit ``event`` (open, os.rename,
os.remove) whose first argument matches ``match``, ``delay`` seconds later. With ``file_size`` it lives on, and no file
may become larger than that from then on. Answers with the exit statuses, -9 for killed.
"""

import importlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time


def arm(kill):
    """Returns what waits for its delay to end."""
    left, pending = [kill.get('count', 1)], []

    def act():
        time.sleep(kill.get('delay', 0))
        if 'file_size' in kill:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kill['file_size'],) * 2)
        else:
            os.kill(os.getpid(), signal.Signals[kill.get('signal', 'SIGKILL')])

    def watch(event, arguments):
        if event == kill['event'] and re.search(kill['match'], str(arguments[0])):
            left[0] -= 1
            if left[0] == 0:
                if not kill.get('delay'):
                    return act()
                pending.append(threading.Thread(target=act, daemon=True))
                pending[0].start()

    sys.addaudithook(watch)
    return pending


def train(job, rank):
    output = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job.get('env', {}), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.get('ranks', 1)))
    pending = arm(job['kill']) if job.get('kill') and rank == 0 else []
    status = 1
    try:
        status = run_tool(main, job['argv'])
    finally:
        for kill in pending:  # its delay may outlast the training
            kill.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == '__main__':
    # Libraries greet on stdout, which is for answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    import mmengine.config.config
    import yapf.yapflib.yapf_api

    import lckd_mm.hooks
    from lckd_mm.cli import run_tool
    from lckd_mm.cli import train as main

    for host in sys.argv[1:]:
        for part in ('datasets', 'models', 'visualization'):
            importlib.import_module(f'{host}.{part}')
    # mmengine lays out the config's text anew for each checkpoint, which takes longer than all the training here.
    yapf.yapflib.yapf_api.FormatCode = mmengine.config.config.FormatCode = lambda text, **_: (text, False)
    for line in sys.stdin:
        job = json.loads(line)
        processes = []
        for rank in range(job.get('ranks', 1)):
            process = os.fork()
            if process == 0:
                # Tests that run in the background of a shell inherit that SIGINT is ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                train(job, rank)
            processes.append(process)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        print(json.dumps(statuses), file=answers, flush=True)
