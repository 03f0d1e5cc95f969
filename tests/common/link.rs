//! A network namespace with one cable to it, which can be narrowed, spoilt and cut. Gone with the value, also when the test panics.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::available;

/// The namespace and its cable.
pub struct Link {
    /// Of the namespace.
    pub name: String,
    /// Its addresses.
    pub far: Ipv4Addr,
    pub far_v6: Ipv6Addr,
    near_end: String,
    far_end: String,
}

/// Run it, its words parted by blanks; what it said against it.
pub fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let output =
        Command::new(words.next().unwrap()).args(words).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

impl Link {
    /// `None`, with the reason printed, where the machine has no namespaces or we may not make any.
    pub fn new() -> Option<Link> {
        // Tests of several processes run side by side, and of one.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = (std::process::id() * 4 + COUNT.fetch_add(1, Ordering::Relaxed)) & 0x3fff;
        let name = format!("cai-test-{number}");
        let made = run(&format!("ip netns add {name}"));
        if !available("netns", made.is_ok(), made.as_ref().err().map_or("", String::as_str)) {
            return None;
        }
        let [high, low] = [number >> 6, (number & 0x3f) << 2].map(|part| u8::try_from(part).unwrap());
        let (near, far) = (Ipv4Addr::new(10, 78, high, low + 1), Ipv4Addr::new(10, 78, high, low + 2));
        let (near_end, far_end) = (format!("cai{number}n"), format!("cai{number}f"));
        let on_v6 = |last| Ipv6Addr::new(0xfd78, 0, 0, u16::try_from(number).unwrap(), 0, 0, 0, last);
        let (near_v6, far_v6) = (on_v6(1), on_v6(2));
        let link = Link { name, far, far_v6, near_end, far_end };
        let Link { name, near_end, far_end, .. } = &link;
        for command in [
            format!("ip link add {near_end} type veth peer name {far_end} netns {name}"),
            format!("ip addr add {near}/30 dev {near_end}"),
            format!("ip addr add {near_v6}/64 dev {near_end} nodad"),
            format!("ip link set {near_end} up"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {name} addr add {far}/30 dev {far_end}"),
            format!("ip -n {name} addr add {far_v6}/64 dev {far_end} nodad"),
            format!("ip -n {name} link set {far_end} up"),
        ] {
            run(&command).unwrap();
        }
        Some(link)
    }

    /// A command inside, prepared. The file systems are those outside.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// What comes out of the namespace goes through this queue, as `tc qdisc add` takes it; says why not.
    pub fn shape(&self, queue: &str) -> Result<(), String> {
        run(&format!("tc -n {} qdisc replace dev {} root {queue}", self.name, self.far_end))
    }

    /// Pull the cable out, or put it back.
    pub fn connected(&self, yes: bool) {
        let state = if yes { "up" } else { "down" };
        run(&format!("ip -n {} link set {} {state}", self.name, self.far_end)).unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = run(&format!("ip link del {}", self.near_end));
        let _ = run(&format!("ip netns del {}", self.name));
    }
}
