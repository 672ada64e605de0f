"""What one probed batch tells beside its sites: loss, inputs, parameters, cuts, births of NaN, rank."""
