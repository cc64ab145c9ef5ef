"""What a model writes, split into content, reasoning and tool calls while it is written."""
