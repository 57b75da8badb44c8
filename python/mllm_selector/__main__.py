"""``python -m mllm_selector`` is the command line."""

import sys

from mllm_selector.cli import main

sys.exit(main())
