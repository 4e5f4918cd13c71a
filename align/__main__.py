"""`python -m align`: see :func:`align.run.align`."""

from store.cli import run

if __name__ == "__main__":
    from align.run import align

    run(align, prog="python -m align")
