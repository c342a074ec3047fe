"""The web console at the admin listener's `/`: one page, rendered here, with a script that keeps it up to date."""
