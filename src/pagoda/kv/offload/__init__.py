"""KV whose home is a lower tier: a step brings the pages of a few heads at a time into a window, and attends there."""
