# SPDX-License-Identifier: Apache-2.0
"""Text that ships with the package, so that profiling and evaluation need no download.

Every source document belongs to exactly one split: ``calibration`` text decides budgets, ``held_out`` text judges them.
Origins and licences: ``SOURCES.md`` and ``LICENSES.txt`` in this folder.
"""

from shplb.texts.document import Document, documents_hash
from shplb.texts.library import DOMAINS, Split
from shplb.texts.mix import calibration_documents, held_out_documents
from shplb.texts.retrieval import RetrievalPrompt, retrieval_prompts
from shplb.texts.user import user_documents, user_texts

__all__ = [
    "DOMAINS",
    "Document",
    "RetrievalPrompt",
    "Split",
    "calibration_documents",
    "documents_hash",
    "held_out_documents",
    "retrieval_prompts",
    "user_documents",
    "user_texts",
]
