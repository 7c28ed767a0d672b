"""`python -m pi05ctl` is `pi05ctl`."""

from pi05ctl.cli.main import main

if __name__ == "__main__":
    main()
