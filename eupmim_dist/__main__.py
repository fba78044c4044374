"""`python -m eupmim_dist` is `eupmim-dist`; launchers start it with `-m eupmim_dist`."""

from eupmim_dist.cli.app import main

if __name__ == "__main__":
    main()
