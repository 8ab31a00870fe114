"""The speed benchmarks: their arithmetic in closed form, and one small run of each as a whole."""

import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parents[1] / 'benchmarks'
sys.path.insert(0, str(FOLDER))  # As for a script of that folder.

import common  # noqa: E402
import gradients  # noqa: E402
import growth  # noqa: E402
import inversion  # noqa: E402
import run as benchmarks_run  # noqa: E402
import scaling  # noqa: E402
import slopes  # noqa: E402
from namespaces import CodeBase  # noqa: E402
from peaks import CountFlops  # noqa: E402

from torch_utils.ops import bias_act  # noqa: E402


def run(script: str, *args: str, code: int = 0) -> str:
    env = dict(os.environ, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive')
    done = subprocess.run([sys.executable, str(FOLDER / script), *args], env=env, capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_numbers_have_three_digits() -> None:
    values = {123456.0: '123456', 123.4: '123', 12.34: '12.3', 1.234: '1.23', 0.1234: '0.123', 0.01234: '0.0123'}
    assert {value: common.number(value) for value in values} == values


def test_growth_is_fitted_exactly_to_a_power() -> None:
    points: dict[int, growth.Point] = {n: {'G eval': [3.0 * n**2, 5.0 * n**2], 'peak': [n, 4.0 * n]} for n in (1, 2, 8)}
    lines = growth.table('resolution', points)
    assert [cell.strip() for cell in lines[-1].split('|')[1:-1]] == ['exponent', '2.00', '2.00', '', '1.00', '1.00', '']
    assert [cell.strip() for cell in lines[2].split('|')][4] == '1.67'


def test_flops_are_twice_the_multiplications() -> None:
    x, w = torch.randn([2, 3, 8, 8], requires_grad=True), torch.randn([5, 3, 3, 3], requires_grad=True)
    once = 2 * 2 * 8 * 8 * 5 * 3 * 9
    with CountFlops() as counter:
        y = functional.conv2d(x, w, padding=1)
    assert counter.flops == once
    with CountFlops() as counter:
        torch.autograd.grad(y.sum(), [x, w])
    assert counter.flops == 2 * once
    with CountFlops() as counter:
        functional.conv_transpose2d(y.detach(), w.detach(), padding=1)
        functional.conv2d(x, torch.randn([3, 1, 4, 4]), groups=3)  # A filter: not counted.
        torch.randn([7, 11]) @ torch.randn([11, 13])
    assert counter.flops == once + 2 * 7 * 11 * 13


def test_draws_do_not_depend_on_order_or_memory_format() -> None:
    x = torch.zeros([2, 3, 4, 4])
    with gradients.same_draws():
        first = torch.randn(2, 5), torch.randn_like(x), torch.randn([2, 5])
    with gradients.same_draws():
        second = torch.randn_like(x.contiguous(memory_format=torch.channels_last)), torch.randn([2, 5])
    assert torch.equal(first[1], second[0]) and torch.equal(first[0], second[1])
    assert not torch.equal(first[0], first[2])


def test_gradients_differ_by_norms() -> None:
    ones = {'Gmain': {'w': torch.ones([3]), 'b': torch.ones([1])}}
    others = {'Gmain': {'w': torch.ones([3]), 'b': torch.tensor([1.5])}}
    assert gradients.differences(others, ones)['Gmain'] == pytest.approx((0.25, 0.5))


def test_slopes_are_recorded_once_a_call_and_can_be_prescribed() -> None:
    x, b = torch.tensor([[[[-1.0]], [[3.0]]]], requires_grad=True), torch.tensor([0.5, -1.0])

    def act() -> tuple[list[float], list[float]]:
        y = bias_act.bias_act(x, b, act='lrelu', gain=1)
        return y.flatten().tolist(), torch.autograd.grad(y.sum(), x)[0].flatten().tolist()

    with slopes.recorded(bias_act) as found:
        free = act()
        bias_act.modulated_bias_act(x.double(), act='lrelu')  # Calls the other one.
        bias_act.bias_act(x)
    assert [t.flatten().tolist() for t in found] == [[False, True]] * 2
    with slopes.prescribed(bias_act, found[:1]):
        assert act() == free == (pytest.approx([-0.1, 2.0]), pytest.approx([0.2, 1.0]))
    with slopes.prescribed(bias_act, [~found[0]]):
        assert act() == (pytest.approx([-0.5, 0.4]), pytest.approx([1.0, 0.2]))
    with slopes.prescribed(bias_act, []), pytest.raises(ValueError, match=r'got None, expected \[1, 2, 1, 1\]'):
        act()
    with pytest.raises(ValueError, match='more than'), slopes.prescribed(bias_act, found):
        act()
    assert slopes.apart(found, [found[0], ~found[1]]) == 2 and slopes.apart(found, found[:1]) is None


class Written:
    """A side whose gradients are 1, by the way of one leaky ReLU. This project is 1e-6 off; in Greg it takes the slope
    that float64 doesn't, which makes 5 of 1, and in Dmain it calls its leaky ReLU twice."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours

    def ask(self, command: str, path: str, options: dict[str, Any]) -> None:
        of = torch.load(options['slopes_of'], weights_only=True) if 'slopes_of' in options else None
        off, values, taken = 1 + 1e-6 * self.ours, {}, {}
        for phase in options.get('phases', gradients.PHASES):
            flipped = self.ours and phase == 'Greg' if of is None else not bool(of['slopes'][phase][0])
            taken[phase] = [torch.tensor([not flipped])] * (2 if self.ours and phase == 'Dmain' else 1)
            values[phase] = {'w': torch.tensor([off * (5 if flipped else 1)], dtype=torch.float64)}
        outputs = {} if of else {'G eval': torch.tensor([off], dtype=torch.float64)}
        torch.save({'values': {**outputs, **values}, 'slopes': taken}, path)


def test_a_slope_that_differs_is_told_from_a_loss_of_accuracy(tmp_path: pathlib.Path) -> None:
    batches = gradients.measure([Written(True), Written(False)], str(tmp_path), 2, 1e9)
    assert len(batches) == 2 and len(gradients.measure([Written(True), Written(False)], str(tmp_path), 2, 0)) == 1
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in gradients.tables(batches) if '|' in line]
    assert rows[2:5] == [['G eval', '1.0e-06', '0.0e+00', '1.0e-06', '0.0e+00', '0.0e+00'],
                         ['Gmain', '1.0e-06', '0.0e+00', '1.0e-06', '0.0e+00', '0.0e+00'],
                         ['Greg', '4.0e+00', '0.0e+00', '4.0e+00', '0.0e+00', '0.0e+00']]  # fmt: skip
    assert [row[:2] + row[7:] for row in rows[9:12]] == [
        ['Gmain', '1.0e-06', '0', '0', '0'], ['Greg', '1.0e-06', '1', '0', '0'], ['Dmain', '–', '–', '0', '0']]


def test_two_code_bases_live_in_one_process(tmp_path: pathlib.Path) -> None:
    for name in ('one', 'two'):
        (tmp_path / name / 'training').mkdir(parents=True)
        (tmp_path / name / 'training' / '__init__.py').write_text(f'name = {name!r}\n')
    import training

    bases = [CodeBase([str(tmp_path / name)]) for name in ('one', 'two')]
    for base, name in [*zip(bases, ('one', 'two')), (bases[0], 'one')]:
        with base.active():
            import training as theirs

            assert getattr(theirs, 'name', None) == name
    assert sys.modules['training'] is training and str(tmp_path / 'one') not in sys.path


def test_inversion_tells_when_the_other_gets_as_near() -> None:
    ours, theirs = [[(1.0, 0.5), (2.0, 0.2)]], [[(10.0, 0.6), (20.0, 0.4), (30.0, 0.3)]]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in inversion.table(ours, theirs, [0])[2:]]
    assert rows[0] == ['encoder', '1.00', '0.500', '20.0', '20.0', '1 of 1']
    assert rows[2] == ['projector.py, 3 steps', '30.0', '0.300', '2.00', '0.0667', '1 of 1']
    assert inversion._cells([(2.0, 0.2)], theirs)[2:] == ['> 30.0', '> 15.0', '0 of 1']


def test_scaling_takes_ratios_within_rounds() -> None:
    alone, single, two = scaling.settings_of([1, 2], cores=2)
    assert (alone, single, two) == ((1, 2), (1, 1), (2, 1))
    seconds = {alone: (0.8, 4.0), single: (1.0, 4.0), two: (0.5, 2.5)}
    found = {('training', setting): [scaling.Measured(10, one, 0.2 * one) for one in times]
             for setting, times in seconds.items()}  # fmt: skip
    found['weak', two] = [scaling.Measured(20, 1.0, 0.0), scaling.Measured(20, 5.0, 0.0)]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in scaling.table(found, 2)[2:]]
    assert rows[1] == ['training', '1 × 1', '6.25', '0.90', '1.00', '100%', '20%']
    assert rows[2] == ['training', '2 × 1', '12.0', '1.60', '1.80', '90%', '20%']
    assert rows[3][2:6] == ['12.0', '1.60', '1.80', '90%'], 'images a second, whatever the batch'
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in scaling.table(
        {('invert', scaling.Setting(n)): [scaling.Measured(10, 1 / n**0.5, 0.0)] for n in (1, 4)}, None)[2:]]
    assert rows[1][3:5] == ['2.00', '50%'], 'a GPU each'


def test_operators_are_timed_and_agree_with_kernels_off() -> None:
    out = run('ops.py', '--batch=2', '--channels=4', '--resolution=8', '--rounds=1', '--device=cpu')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in out.splitlines() if line.startswith('|')][2:]
    assert len(rows) == 33 and all(float(row[1]) > 0 and float(row[9]) < 1e-3 for row in rows)


@pytest.mark.slow
def test_iteration_beside_itself_has_no_differences() -> None:
    """The project as its own host, in one process: gradients agree, and every extra table is there."""
    out = run('iteration.py', '--size=S', '--device=cpu', '--rounds=1', '--one-process', '--gradients',
              '--limits', '--profile', f'--host={FOLDER.parent}')
    tables = out.split('relative difference')[1].split('same slopes')
    for table, sides in zip(tables[:2], ((1, 2, 3, 4, 5), (1, 3, 5)), strict=True):
        rows = {row[1]: row for row in ([cell.strip() for cell in line.split('|')] for line in table.splitlines())
                if len(row) > 6}
        assert all(float(rows['Greg'][1 + side]) < 1e-4 for side in sides)
    assert all(text in out for text in ('one process', 'best convolution', 'Profile of', 'sec/kimg'))


@pytest.mark.slow
def test_growth_prints_its_tables() -> None:
    out = run('growth.py', '--resolutions=8,16', '--batches=2', '--channels=', '--width=4', '--latent=8', '--rounds=1',
              '--device=cpu')
    assert out.count('| exponent |') == 2 and 'nan' in out, 'one point has no exponent'


def test_the_data_path_is_measured_where_both_sides_agree() -> None:
    out = run('data_path.py', '--kinds=png,jpg', '--resolutions=8', '--workers=0', '--step-ms=5', '--rounds=1',
              '--seconds=0.05')
    assert out.count('| png 8², batch 32 | 0 |') == 2 and out.count('| jpg 8²') == 2 and 'nan' not in out


def test_steps_without_time_are_named_and_results_are_kept(tmp_path: pathlib.Path) -> None:
    args = f'--out={tmp_path}', '--only=inversion,ops', '--minutes=0'
    path = run('run.py', *args, code=1).strip()
    text = pathlib.Path(path).read_text()
    assert '| ops | had no time left | 0 |' in text and '| inversion | had no time left | 0 |' in text
    assert '2 of 2 steps failed: ops had no time left; inversion had no time left.' in text
    assert str(FOLDER.parent) not in text
    assert benchmarks_run.free_stem(str(tmp_path), 'cpu-speed') == path.removesuffix('.md') + '-2'


def test_a_failed_step_does_not_stop_the_others(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / 'step.py'
    monkeypatch.setattr(benchmarks_run, 'facts', list)
    script.write_text('import sys\nprint("a table")\nsys.exit(int(sys.argv[-1]))\n')
    steps = [benchmarks_run.Step(f'step{code}', 'Title', 10, f'{script} {{host}} 0', str(code)) for code in (3, 0)]
    outcomes = benchmarks_run.run_all(steps, None, None, str(tmp_path), str(tmp_path / 'all'), time.monotonic() + 60,
                                      smoke=True)
    assert [one.end for one in outcomes] == ['failed (3)', 'ok']
    assert benchmarks_run.summary(outcomes) == '1 of 2 steps failed: step3 failed (3)'
    assert (tmp_path / 'all.md').read_text().count('a table') == 2
    assert 'about 3 min' in benchmarks_run.outlook([benchmarks_run.Outcome(steps[0], 40.0, 'ok')], steps * 2)
