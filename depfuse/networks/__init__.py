"""Handle any `nn.Module`: copies, running, memory layout, stages, resizing."""
