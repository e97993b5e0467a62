"""The command line: one module a command, which parses and prints; torch is imported when a command runs."""
