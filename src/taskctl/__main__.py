"""`python -m taskctl` is the `taskctl` command."""

from taskctl.cli import main

if __name__ == "__main__":
    main()
