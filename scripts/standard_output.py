"""Writing where a reader may have gone, or a disk be full."""

import os
import sys
from pathlib import Path


def write(text):
    """Prints `text`; the exit code: 1 where it could not be written, which a reader that has gone (`| head`) is not told."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at its end
        if not isinstance(error, BrokenPipeError):
            print(f"{Path(sys.argv[0]).name}: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return 1
    return 0
