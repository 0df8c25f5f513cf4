"""Pure core of the node component: parse, plan, render. No clock, no I/O."""
