"""`python -m paft_ray.cli`."""

from paft_ray.cli import main

main()
