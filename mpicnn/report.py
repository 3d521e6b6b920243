"""`python -m mpicnn.report RUN_DIR`: draw the curves of a run."""

import sys

from mpicnn.run.summary import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
