# SPDX-License-Identifier: Apache-2.0
"""What a unit of a head's output error counts when budgets minimise their sum."""

from typing import Literal, get_args

import msgspec
import numpy as np

from shplb.importance import normalised
from shplb.profile import HeadProfile

#: measured: by the profile's importance, equal where it has none. none: all errors alike. residual: over the mean
#: squared norm of what the layer adds its output to, so that an error counts in proportion to it. fisher: by
#: importance, which the profile must have.
Weighing = Literal["measured", "none", "residual", "fisher"]


def weighed(profile: HeadProfile, weighing: Weighing) -> HeadProfile:
    """``profile`` with the importance that ``weighing`` gives its heads.

    Raises:
        ValueError: one sentence where the profile lacks what is asked for, or there is no such weighing.
    """
    if weighing not in get_args(Weighing):
        raise ValueError(f"--weighing is {weighing}, expected {' or '.join(get_args(Weighing))}.")
    shape = profile.model.num_layers, profile.model.num_qo_heads
    if weighing == "none":
        return msgspec.structs.replace(profile, importance=np.ones(shape))
    if weighing == "residual":
        if not np.all(profile.residual > 0):
            raise ValueError("the profile has no norms of the residual stream for --weighing residual; profile again.")
        weights = np.broadcast_to(1.0 / profile.residual[:, None], shape)
        return msgspec.structs.replace(profile, importance=normalised(weights, profile.model))
    if weighing == "fisher" and not profile.importance_method.startswith("fisher"):
        raise ValueError("the profile has no importance of heads; make it again with `--importance fisher`.")
    return profile
