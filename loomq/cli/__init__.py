"""The command line: click and rich, one file a command, each loaded when it is called."""
