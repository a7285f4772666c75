"""The settings of a trial: their checks, presets and variants, and how they are written as text.

Standard library only, so that a command answers before torch is imported.
"""

from mpcc.config.alive import (
    ALIVE,
    EVALUATION,
    cautions,
    dead,
    idle_options,
    training_cell_key,
    training_key,
    without_dead,
)
from mpcc.config.checks import unknown
from mpcc.config.fields import (
    ALIASES,
    DEFAULTS,
    FIRST_DEFAULTS,
    IMAGE_SIZES,
    N_CHANNELS,
    RANGES,
    REMOVED,
    SHORT,
    Config,
    from_dict,
    from_record,
    full_name,
    trial_key,
)
from mpcc.config.parsing import parse_assignment, parse_settings, parse_value, value_text
from mpcc.config.presets import PRESETS, VARIANTS, preset, variant
