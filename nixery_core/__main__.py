"""``python -m nixery_core`` is the command ``nixery-core``."""

import sys

from nixery_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
