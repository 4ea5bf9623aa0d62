"""`python -m jaxtrader` is `jaxtrader`."""

import sys

from jaxtrader.cli import main

if __name__ == "__main__":
    sys.exit(main())
