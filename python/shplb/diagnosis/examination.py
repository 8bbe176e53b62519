# SPDX-License-Identifier: Apache-2.0
"""All probes in the order in which they are shown, each isolated from the failures of the others."""

from collections.abc import Callable, Iterator

from shplb.diagnosis.finding import Finding

Probe = Callable[[], list[Finding]]


def examine(model_path: str | None = None, tp_size: int = 1, *, prebuild: bool = False) -> list[Finding]:
    """Run every probe.

    Args:
        model_path: a Hugging Face folder, or the name of a model that was downloaded, to check too; no weights are
            loaded, only sampled for the fingerprint.
        tp_size: ranks that would serve it.
        prebuild: compile the kernel that the model needs, where it is not in FlashInfer's cache.
    """
    findings: list[Finding] = []
    for area, probe in _probes(model_path, tp_size, prebuild):
        try:
            findings += probe()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            text = f"could not be checked ({type(error).__name__}: {reason})"
            findings.append(Finding(area, "problem", text, "install shplb and its dependencies again"))
    return findings


def _probes(model_path: str | None, tp_size: int, prebuild: bool) -> Iterator[tuple[str, Probe]]:
    # Imports stay inside the probes: a dependency that is missing must cost its own line only.
    def versions() -> list[Finding]:
        from shplb.diagnosis.versions import check_versions

        return check_versions()

    def patch() -> list[Finding]:
        from shplb.diagnosis.installation import check_patch

        return check_patch()

    def plugin() -> list[Finding]:
        from shplb.diagnosis.installation import check_plugin

        return check_plugin()

    def devices() -> list[Finding]:
        from shplb.diagnosis.devices import check_devices

        return check_devices(tp_size)

    def cache() -> list[Finding]:
        from shplb.diagnosis.cache import check_cache

        return check_cache()

    def model() -> list[Finding]:
        from shplb.diagnosis.served_model import check_model

        return [] if model_path is None else check_model(model_path, tp_size)

    def kernel() -> list[Finding]:
        from shplb.diagnosis.kernel import check_kernel

        return [] if model_path is None else check_kernel(model_path, prebuild=prebuild)

    yield from (("versions", versions), ("patch", patch), ("plugin", plugin), ("devices", devices), ("cache", cache))
    yield from (("model", model), ("kernel", kernel))
