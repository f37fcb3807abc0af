"""`python -m ddgen` is the same program as `ddgen`."""

from ddgen.cli.main import main

main()
