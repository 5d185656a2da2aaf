"""`python -m kdtflite.cli`."""

from kdtflite.cli import main

main()
