"""The old name of restore_pretrained.py."""

import sys

sys.exit('restore_upstream.py has been renamed: run tools/model_converters/restore_pretrained.py')
