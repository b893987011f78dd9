"""Units in which a problem is solved: sizes of coordinates, fields and residuals, declared or found."""
