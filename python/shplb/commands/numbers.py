# SPDX-License-Identifier: Apache-2.0
"""Lists of numbers on the command line."""


def parse_numbers(flag: str, text: str, expected: str) -> tuple[int, ...]:
    """ "2,8,4" -> (2, 4, 8); ValueError in one sentence, which says what was ``expected``, for anything else."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise ValueError(f"{flag} is '{text}', expected {expected}.")
    return numbers
