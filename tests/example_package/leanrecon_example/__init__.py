"""One small kind of each group of leanrecon."""
