"""A process that dies under torchrun stops the others, with one line that names it."""

import pathlib
import subprocess
import sys

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
