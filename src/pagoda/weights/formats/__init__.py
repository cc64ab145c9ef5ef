"""Weight formats: one file per format, the file name is the format's name. No torch until one is used."""

from ...core.registry import Registry

FORMATS = Registry("pagoda.weights.formats", "weight format", "FORMAT")
