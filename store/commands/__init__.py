"""The subcommands of ``python -m store``, one file each."""
