"""`python -m expunge`: what `torchrun -m` and `accelerate launch -m` start."""

from expunge.cli import main

main()
