"""A GPU in host memory, so that the code for GPU ranks is tested where there is none.

The packages `cupy` and `cudnn` beside this one have the names of the real ones and offer the part
that a numeric backend wants, built on what is here: memory, streams, kernels.

Checked: signatures and argument types; that host and device arrays are not mixed; what kernels
compute, since their very sources run, compiled by the host's compiler; writes beyond an array,
misaligned vector accesses, barriers that some threads miss, missing barriers (mostly: the order
of threads alternates); memory that is used before it is written or after it is freed; missing
synchronisation, since work waits in its stream until somebody synchronises.

Not checked: speed; how a real device rounds where it is free to (fused multiply-adds, the order
of a library's sums); real cuDNN's choice of engines and what it supports; races between blocks or
streams that the one order of execution here does not show; limits on registers.
"""
