//! What this process keeps of root's privileges: the capabilities of the helper's unit, also where no unit bounds it, and fewer
//! where a vendor's library is opened. Called before there is a second thread: the kernel keeps both by thread.

use anyhow::Context;
use nix::sys::prctl::set_no_new_privs;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Those that `CapabilityBoundingSet=` of `systemd/cai-helper@.service` names, which says what for.
pub(crate) const HELPER: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::NET_ADMIN);

/// What a child needs to become the adapter's user.
pub(crate) const BECOME: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

/// Keep those of `wanted` that this process has, for good: without new privileges, no program that it becomes gets more either.
pub(crate) fn keep(wanted: CapabilitySet) -> anyhow::Result<()> {
    set_no_new_privs().context("refusing new privileges")?;
    let permitted = capabilities(None).context("asking for capabilities")?.permitted & wanted;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("dropping capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_the_units() {
        let unit = include_str!("../../../systemd/cai-helper@.service");
        let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        let named = names.split(' ').map(|name| name.strip_prefix("CAP_").unwrap());
        let named: Vec<_> = named.map(|name| CapabilitySet::from_name(name).unwrap()).collect();
        assert_eq!(CapabilitySet::from_iter(named), HELPER);
    }
}
