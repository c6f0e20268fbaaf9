"""``python -m prect``."""

from prect.cli import main

if __name__ == "__main__":
    main()
