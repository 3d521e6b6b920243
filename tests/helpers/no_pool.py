"""A plugin for pytest: CuPy takes and gives back memory array by array, `-p no_pool`.

A memory checker sees a write beyond an array only where that is not another array's memory in the
same piece of a pool.
"""

import cupy

cupy.cuda.set_allocator(None)
