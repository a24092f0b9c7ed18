"""VIL codes and frames: the constants of SEVIR's vertically integrated liquid, each once.

A code is a stored uint8: 0 to 254 are valid, 255 is missing.
"""

import numpy as np

FRAMES_IN = 13
FRAMES_OUT = 12
FRAME_MINUTES = 5

MISSING = 255
VIL_MEAN = 33.44  # of the codes of the authors' training set
VIL_SCALE = 47.54
VIL_THRESHOLDS = (16, 74, 133, 160, 181, 219)
VALIDATION_THRESHOLDS = (16, 74, 133)  # codes, of those in VIL_THRESHOLDS
VIL_LEVELS = (0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255)  # edges of the ten colors


def vil_kg_m2(code):
    """Vertically integrated liquid of stored codes.

    Args:
      code: stored codes, any shape, 0 to 255.

    Returns:
      float32 kg/m2 of the same shape; NaN where the code is 255, missing.

    Source: the SEVIR paper's scaling, linear up to code 18 and exponential above.
    """
    code = np.asarray(code, dtype=np.float32)
    linear = (code - 2) / np.float32(90.66)
    exponential = np.exp((code - np.float32(83.9)) / np.float32(38.9))
    vil = np.where(code <= 18, linear, exponential)
    return np.where(code <= 5, 0, np.where(code == MISSING, np.nan, vil)).astype(np.float32)
