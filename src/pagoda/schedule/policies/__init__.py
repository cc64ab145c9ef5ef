"""One file per scheduling policy; the file name is the name that ``--scheduling`` takes."""

from ...core.registry import Registry

POLICIES = Registry("pagoda.schedule.policies", "scheduling policy", "POLICY")
