# SPDX-License-Identifier: Apache-2.0
"""``python -m shplb``."""

from shplb.cli import main

if __name__ == "__main__":
    main()
