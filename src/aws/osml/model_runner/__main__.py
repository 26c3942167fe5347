"""`python -m aws.osml.model_runner` is `model-runner`."""

import sys

from aws.osml.model_runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
