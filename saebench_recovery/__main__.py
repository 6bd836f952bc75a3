"""`python -m saebench_recovery` is `saebench`."""

from saebench_recovery.cli import main

if __name__ == "__main__":
    main()
