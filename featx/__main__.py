"""`python -m featx`: the same as the command `featx`."""

from featx.cli import main

if __name__ == "__main__":
    main()
