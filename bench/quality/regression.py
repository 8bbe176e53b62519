# SPDX-License-Identifier: Apache-2.0
"""Whether quality fell behind an earlier result of the same run, and whether density 1.0 is stock."""

from typing import Any

from quality.variants import DENSE

# Sparse kernels sum in another order than dense ones; a wrong page costs hundreds of times as much.
MOST_NLL_NOISE = 0.05  # percent
_SAME = ("model", "tokens", "prompts_per_task", "texts", "text_tokens")


def regressions(result: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """One sentence for everything that got worse than ``reference`` allows; ValueError where they can't be compared.

    Allowed are losses up to the far ends of the reference's 95 % intervals against dense.
    """
    # Through JSON, keys that are numbers become strings.
    if different := [key for key in _SAME if _plain(result.get(key)) != _plain(reference.get(key))]:
        raise ValueError(f"the two results differ in {', '.join(different)}; run with the settings of the reference.")
    old = {(row["name"], row["tokens"]): row for row in reference["rows"]}
    found = []
    for row in result["rows"]:
        before = old.get((row["name"], row["tokens"]))
        if row["name"] == DENSE or before is None:
            continue
        where = f"{row['name']} at {row['tokens']} tokens"
        nll, most = row["nll_over_dense_percent"]["value"], before["nll_over_dense_percent"]["high"]
        if nll > most:
            found.append(f"{where}: NLL is {nll:+.2f} % over dense, the reference allows {most:+.2f} %.")
        if "mean_delta" in before:
            mean = row["mean_delta"]["value"] if "mean_delta" in row else float("-inf")
            least = before["mean_delta"]["low"]
            if mean < least:
                found.append(f"{where}: the mean score is {mean:+.2f} over dense, the reference allows {least:+.2f}.")
    if missing := sorted(f"{name} at {tokens} tokens" for name, tokens in old.keys() - _keys(result)):
        found.append(f"the reference has {', '.join(missing)}, and the result has not.")
    return found


def unlike_stock(result: dict[str, Any]) -> list[str]:
    """One sentence for every variant of density 1.0 that does not answer as stock does."""
    found = []
    for row in result["rows"]:
        if row["name"] == DENSE or row["computed_density"] < 1.0:
            continue
        nll = row["nll_over_dense_percent"]["value"]
        if not abs(nll) <= MOST_NLL_NOISE:
            found.append(f"{row['name']} at {row['tokens']} tokens: NLL is {nll:+.3f} % over stock at density 1.")
        mean = row.get("mean_delta")
        if mean is not None and not mean["low"] <= 0.0 <= mean["high"]:
            found.append(f"{row['name']} at {row['tokens']} tokens: scores differ from stock's at density 1.")
    return found


def _keys(result: dict[str, Any]) -> set[tuple[str, int]]:
    return {(row["name"], row["tokens"]) for row in result["rows"]}


def _plain(value: Any) -> Any:
    return {str(key): each for key, each in value.items()} if isinstance(value, dict) else value
