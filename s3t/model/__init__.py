"""Bases, adapters and heads: what a pass goes through.

bitsandbytes, which peft loads where it is installed, gives advice on kernels that a user of s3t
cannot act on; its errors stay.
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
