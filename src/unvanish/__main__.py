"""``python -m unvanish`` is the command ``unvanish``."""

from unvanish.cli import main

if __name__ == "__main__":
    main()
