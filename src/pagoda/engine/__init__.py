"""From request to answer: sequences, the step loop, ``LLM`` and ``AsyncLLM``."""
