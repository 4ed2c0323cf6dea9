"""``python -m ckptdoctor``."""

from ckptdoctor.cli import main

if __name__ == "__main__":
    main()
