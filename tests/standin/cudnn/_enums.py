"""The names that graphs are described with."""

from enum import Enum


class cudnnGraphNotSupportedError(Exception):
    """No engine computes this graph, or a plan is not to be used."""


data_type = Enum("data_type", "FLOAT DOUBLE HALF BFLOAT16 INT8 INT32 INT64 BOOLEAN NOT_SET")
heur_mode = Enum("heur_mode", "A B FALLBACK")
reduction_mode = Enum("reduction_mode", "ADD MUL MIN MAX AMAX AVG NORM1 NORM2 NOT_SET")
build_plan_policy = Enum("build_plan_policy", "HEURISTICS_CHOICE ALL")
convolution_mode = Enum("convolution_mode", "CONVOLUTION CROSS_CORRELATION")
numerical_note = Enum(
    "numerical_note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD "
    "WINOGRAD_TILE_4x4 WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP",
)
