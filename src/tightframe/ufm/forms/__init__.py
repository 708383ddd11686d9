"""Closed forms, a file a loss; :func:`tightframe.ufm.closed_form.closed_form` finds the one of a problem."""
