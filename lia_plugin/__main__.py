"""`python -m lia_plugin COMMAND …`: the same commands as the scripts of the repository's root.

Inside a checkout of NVIDIA's this uses the checkout's own packages, which come first on the path.
"""

import sys

from lia_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(prog_name='python -m lia_plugin'))
