"""The HTTP service: OpenAI and Anthropic forms over one ``AsyncLLM``.

``app.py`` puts it together; a request goes guard (keys, sizes) -> routes -> gate (may it run now) -> job -> answer.
"""
