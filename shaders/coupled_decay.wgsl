// True if weight decay is part of the gradient.

override COUPLED_DECAY: bool;
