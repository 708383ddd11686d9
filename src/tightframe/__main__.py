"""``python -m tightframe``: the command line."""

from tightframe.cli import main

if __name__ == "__main__":
    main()
