"""Pictures of random seeds and of stored latents: `python generate.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('generate')
