"""The sampling steps, one plain function a file, each over one row of logits: float32 [V] in, a new [V] out.

They act in this order, and `pagoda.sampling.plain` composes them so; `pagoda.sampling.chain` is the same for a batch:

1. logit_bias: added to the logits.
2. min_tokens: ids that would end the sequence are forbidden until enough tokens are out.
3. repetition_penalty over prompt and output; then frequency and presence penalty over the output.
4. structure: tokens that the request's grammar does not allow next are forbidden.
5. closing: a mark that has not come in time is the only token that is possible.
6. temperature: 0 ends here with the likeliest token, lowest id first.
7. top_k, 8. top_p, 9. min_p, 10. typical_p: each on what the one before left, renormalized.
11. the draw: inverse of the cumulative distribution, in the order of token ids.

A forbidden token has the logit -inf. Every filter is a threshold, so tokens that tie with the last one kept are kept
too: the kept set does not depend on the order in which a sort leaves equal values, hence not on batch or device.
Draws go by token id and not by rank for the same reason: when rounding swaps two near-equal logits (bf16 logits tie
often), the cumulative distribution by id hardly moves, by rank it jumps.
"""
