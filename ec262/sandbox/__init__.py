"""The sandbox: strangers' Python, confined.

`policy` says what is allowed (data), `pack` makes a portable form of a program, `launcher` is the parent outside,
`child` the process inside, `seccomp` and `kernel` speak to Linux, `language` is the layer for hygiene.
Importing the package starts nothing.
"""
