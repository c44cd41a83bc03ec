"""Runs scripts of this folder one after the other in the same processes, which import the libraries once.

several.py JOBS, where JOBS is a JSON list of lists: the name of a script and its arguments.
"""

import json
import os
import sys
from importlib import import_module

from yapf.yapflib import yapf_api


def main() -> None:
    yapf_api.FormatCode = lambda text, **_: (text, True)  # as in conftest.py
    for script, *arguments in json.loads(sys.argv[1]):
        import_module(script).main(arguments)
    os._exit(0)  # now and then gloo's threads abort an interpreter that ends, stock optimizer or not


if __name__ == '__main__':
    main()
