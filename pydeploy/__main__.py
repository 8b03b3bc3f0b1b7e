"""``python -m pydeploy``: the command line, also for torchrun."""

from pydeploy.cli import main

main()
