"""Room cli: arguments in, lines on the terminal out. One file a verb, and nothing that a Python caller cannot do.

Importing it costs typer only: every verb imports what it runs when it runs, and checks its arguments before torch.
Exit codes: 0 done, 1 failed, 2 the arguments or files are wrong (one line says how), 130 stopped by Ctrl-C.
"""
