"""Every test measures on the CPU: a miniature made here must meet the pipeline it is compared with on one device.

`ACCELERATE_USE_CPU=0 pytest tests/unit/test_embed.py` trains the miniatures on a GPU instead.
"""

import os


os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # read when accelerate first asks for the device
