"""How recipes, optimizers and groups are shown: terminal, Markdown, JSON and YAML. No torch, no lightning."""
