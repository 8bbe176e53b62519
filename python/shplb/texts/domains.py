# SPDX-License-Identifier: Apache-2.0
"""Which kind of text a document is, read from its name, since a profile keeps names only."""

from shplb.texts.library import sources


def domain_of(name: str) -> str | None:
    """Return the domain of the document called ``name``, None where the name carries none.

    Shipped texts are looked up in the manifest. The user's texts have the folder they lie in, below the one that was
    given: ``chat/monday.txt`` is ``chat``. Texts of a .jsonl file, of the given folder itself, or joined over several
    folders have none.
    """
    title, _, start = name.rpartition("@")
    if start.isdecimal():
        shipped = {source.name: source.domain for source in sources()}
        if title in shipped:
            return shipped[title]
    if name.startswith(("retrieval_calibration_", "retrieval_held_out_")):
        return "retrieval"
    folders = {part.rpartition("/")[0].partition("/")[0] for part in name.split("..")}
    return (folders.pop() or None) if len(folders) == 1 else None
