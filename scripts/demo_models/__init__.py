"""How the small models of the demo are trained: data, one loop for all, and what each of them learns."""
