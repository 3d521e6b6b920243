"""`python -m mpicnn.import FILE OUT`: a network of another program."""  # noqa: N999  (the command's word)

from mpicnn.commands import start

if __name__ == "__main__":
    start("import")
