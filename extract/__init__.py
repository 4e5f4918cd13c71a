"""Phase 1: media -> features. Samples, reads and decodes clips, encodes them once and writes to the bank."""
