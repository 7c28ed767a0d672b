"""`python -m pi05ctl` is `pi05ctl`. A package of another Python on PYTHONPATH is a line, and no page of Python's."""

import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        from pi05ctl.cli.main import main as run

        run()
    except (ImportError, AttributeError) as error:  # commands import what they need when they need it
        given = os.environ.get("PYTHONPATH")
        if not given or not (isinstance(error, ImportError) or str(error).startswith(("module ", "partially "))):
            raise
        sys.stderr.write(
            f"pi05ctl: {type(error).__name__}: {error}; PYTHONPATH={given} comes before the packages of "
            f"{sys.executable}: unset it, should it hold those of another Python (ROS sets it in every shell)\n"
        )
        sys.exit(3)


if __name__ == "__main__":
    main()
