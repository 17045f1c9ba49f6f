"""Clock, errors with codes, configuration files and logging: what every room may lean on.

Here: things that know nothing of clusters. Not here: anything with a noun of the domain in its name.
"""
