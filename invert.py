"""Real images into the latent space of a network: `python invert.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('invert')
