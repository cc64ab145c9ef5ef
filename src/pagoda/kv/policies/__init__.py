"""One file per KV policy; the file name is the name that ``kv=`` takes."""

from ...core.registry import Registry

POLICIES = Registry("pagoda.kv.policies", "KV policy", "POLICY")
