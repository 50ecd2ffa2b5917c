"""``python -m testbed``: the command line."""

import sys

from testbed.cli.main import main

sys.exit(main())
