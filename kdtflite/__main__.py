"""`python -m kdtflite`."""

from kdtflite.cli import main

if __name__ == "__main__":  # not where a process that it starts, or a tool, imports this module
    main()
