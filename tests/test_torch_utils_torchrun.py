"""A process that dies under torchrun stops the others, with one line that names it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from torch_utils import torchrun

def work(rank, world_size, dies):
    if rank == 1 and dies:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor([rank + 1.0])
    torch.distributed.all_reduce(total)
    return float(total)

def command():
    try:
        print('total', torchrun.team().dispatch(work, (sys.argv[2] == 'dies',), 'cpu'))
    except RuntimeError as error:
        print('Error:', error)
        return 3
    return 0

if __name__ == '__main__':
    sys.exit(torchrun.run(command))
"""


def run(tmp_path: pathlib.Path, how: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    args = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script), str(ROOT), how]
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)


def test_two_processes_work_together(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, 'lives')
    assert done.returncode == 0 and done.stdout.strip() == 'total 3.0', done.stderr[-2000:]


def test_a_killed_process_is_named(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, 'dies')
    said = [line for line in done.stdout.splitlines() if line.startswith('Error:')]
    assert done.returncode != 0 and len(said) == 1 and 'rank 1 on ' in said[0], done.stdout + done.stderr[-2000:]


WAITING = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from torch_utils import torchrun

def say(text):
    os.write(1, f'{text}\\n'.encode())  # At once: print() writes the line's end by itself, and two lines mix.

def work(rank, world_size):
    say('at work')
    time.sleep(100)

if __name__ == '__main__':
    say('begun')
    if sys.argv[2] == 'late' and os.environ['RANK'] == '0':
        time.sleep(100)
    sys.exit(torchrun.run(lambda: torchrun.team().dispatch(work, (), 'cpu')))
"""


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('how, number', [('late', signal.SIGINT), ('in time', signal.SIGKILL)])
def test_no_process_outlives_torchrun(tmp_path: pathlib.Path, how: str, number: signal.Signals) -> None:
    """Neither one that still waits for the first one at Ctrl-C, nor those of a torchrun that was killed."""
    script = tmp_path / 'script.py'
    script.write_text(WAITING)
    args = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script), str(ROOT), how]
    agent = subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert agent.stdout is not None
    awaited, said = 'begun' if how == 'late' else 'at work', ''
    while said.count(awaited) < 2:
        line = agent.stdout.readline()
        assert line, said
        said += line
    time.sleep(1.0)  # Into the store's C++.
    processes = psutil.Process(agent.pid).children(recursive=True)
    assert len(processes) == 2
    agent.send_signal(number)
    _gone, alive = psutil.wait_procs(processes, timeout=90)
    for process in alive:
        process.kill()
    rest, _ = agent.communicate(timeout=60)
    assert not alive and 'forcefully' not in rest, 'torchrun had to kill after 30 seconds'
