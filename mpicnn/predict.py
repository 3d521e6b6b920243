"""`python -m mpicnn.predict RUN IMAGE…`: what a trained network sees in images."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("predict")
