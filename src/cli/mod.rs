//! One file per subcommand.

pub mod check_key;
pub mod encrypt;
