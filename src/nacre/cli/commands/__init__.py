"""One module per command or small family; each has a table `COMMANDS` of `nacre.cli.flags.Command`."""
