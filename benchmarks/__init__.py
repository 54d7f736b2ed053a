"""Benchmarks: each package has a command, ``python -m benchmarks.NAME``."""

import sys

from s3t.system.pinned import pin

# before torch is loaded, as training itself does; switches that are set stay
pin("portable" if sys.argv[1:2] == ["portable"] else "native")
