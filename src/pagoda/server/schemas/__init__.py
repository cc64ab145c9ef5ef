"""Requests and answers as pydantic models: what the OpenAPI document says, and the strict check at the border."""
