"""`python -m netspace`, and `accelerate launch -m netspace`."""

from netspace.cli.app import main

if __name__ == "__main__":
    main()
