"""Refitting: layer by layer, the child's weights solved for what the parents' do."""
