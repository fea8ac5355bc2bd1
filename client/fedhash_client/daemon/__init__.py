"""The site's long-lived half: data, policy, ledger, secrets, warm model and what keeps them up."""

__all__: list[str] = []
