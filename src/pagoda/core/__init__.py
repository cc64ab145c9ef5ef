"""What every room uses: types, errors, units, strict config, registry, clock, events. No torch."""
