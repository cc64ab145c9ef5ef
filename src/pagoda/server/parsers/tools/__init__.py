"""Formats in which models write tool calls, one a file; each has a ``PARSER`` and what to look for in a template."""
