"""Studies: the tables of one paper's claims each, from what ``tightframe compare`` wrote."""
