"""`python -m kata_gpu.cli`: the console script without its wrapper."""

from kata_gpu.cli.main import main

main()
