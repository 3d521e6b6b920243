"""Stand in for cupy_backends.cuda.api.driver."""


class CUDADriverError(RuntimeError):
    """An error of the CUDA driver."""
