"""Train LIA or a plain StyleGAN2: `python train.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('train')
