"""Commands for people. Each command is a thin shell over api.client or the daemons' own entry points."""
