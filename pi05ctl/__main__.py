"""`python -m pi05ctl` is `pi05ctl`."""

from pi05ctl.cli.runs import main

if __name__ == "__main__":
    main()
