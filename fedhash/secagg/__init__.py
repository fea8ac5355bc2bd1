"""Secure aggregation: the coordinator learns the sum of the sites' vectors and nothing else.

The protocol is that of Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving
machine learning" (CCS), with the sparse graph of Bell et al. 2020, "Secure single-server
aggregation with (poly)logarithmic overhead" (CCS). `site` and `coordinator` are its two halves;
what it promises is written in docs/threat-model.md.

    fixed_point     real vectors as integers of a ring
    encoding        which blocks a round's vector has
    packing         ring vectors as bytes
    masks           keystreams that hide them
    shamir          shares of a secret
    graph           who masks with whom, and how many shares open a secret
    identity        who signs
    ed25519         which public keys can be trusted at all
    key_agreement   keys of pairs
    round_secrets   what a site alone knows in a round
    opened_rounds   what it remembers of rounds
    outlook         what a person should know before the first round
    messages        what travels
"""
