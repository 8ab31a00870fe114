"""Make a data set for training: `python dataset_tool.py --help`."""

from lia_plugin.cli import main_command

if __name__ == '__main__':
    main_command('dataset_tool')
