"""Evaluate a network: `python calc_metrics.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('calc_metrics')
