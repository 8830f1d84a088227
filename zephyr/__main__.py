"""`python -m zephyr`: the same as the `zephyr` command."""

import sys

from zephyr.cli import main

sys.exit(main())
