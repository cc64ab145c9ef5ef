"""Shared layers, written once over the specs of `models.spec`; a family never brings code of its own."""
