"""Working on copies: one objective for every form of program, the rehearsal, the experiments, the session."""
