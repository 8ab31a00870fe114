"""`python -m lia_plugin COMMAND …`: the same commands as the scripts of the repository's root."""

import sys

from lia_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main())
