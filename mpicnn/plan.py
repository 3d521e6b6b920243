"""`python -m mpicnn.plan`: how a plan divides a network, and what a step costs."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("plan")
