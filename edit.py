"""Real and random images, edited in the latent space: `python edit.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('edit')
