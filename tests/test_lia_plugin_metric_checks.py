"""What is looked at before metrics are computed; tests/test_command_calc_metrics.py has the files and labels."""

from __future__ import annotations

import pytest

import lia_plugin.metrics  # noqa: F401
from lia_plugin import metric_checks
from lia_plugin.host import UserError

TAKEN = {
    'detector': ('fid50k_full', 'pr50k3', 'ppl_zend', 'is50k', 'recon_fid', 'recon_fid_train'),
    'lpips': ('recon_lpips',),
    'id_detector': ('recon_id',),
    'labels': ('ls',),
    'space': ('recon_mse', 'recon_lpips', 'recon_id', 'recon_fid', 'recon_fid_train', 'ls', 'cycle_z', 'latent_fd'),
}
NAMES = sorted({name for names in TAKEN.values() for name in names} | {'swd'})


@pytest.mark.parametrize('option', TAKEN)
@pytest.mark.parametrize('name', NAMES)
def test_an_option_is_refused_where_it_would_count_for_nothing(option: str, name: str) -> None:
    given = dict.fromkeys(TAKEN) | {option: 'y'}
    if name in TAKEN[option]:
        metric_checks.check_options([name], given)
    else:
        said = f'^--{option.replace("_", "-")}: none of the metrics takes it .swd, {name}.; leave it out$'
        with pytest.raises(UserError, match=said):
            metric_checks.check_options(['swd', name], given)
    metric_checks.check_options([name, *TAKEN[option]], given)
    metric_checks.check_options([name], dict.fromkeys(TAKEN))
