"""One watched backward pass: autograd nodes in, sites of plain numbers out."""
