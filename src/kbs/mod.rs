//! RCAR client of the Trustee key broker.
