"""What `fedhash-site check` looks at, one kind of fault a module.

>>> check_site(Path("site.yaml")).findings
(Finding(severity='error', problem=Problem(file=..., line=12, message=...)),)
"""
