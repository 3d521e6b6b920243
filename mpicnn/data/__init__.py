"""Image files: prepare them (`python -m mpicnn.data`), open them, read batches of them ahead.

`mpicnn.data.file.open_dataset` opens one, `mpicnn.data.loader.Batches` reads it. Nothing is
imported here: the command line starts MPI before anything else.
"""
