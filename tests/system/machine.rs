//! The machine that the package lives in, as the steps see it: scripts go in, what they print comes out. Whether it is a container
//! (`container.rs`) or a virtual machine (`vm.rs`) is behind [`Inside`].

use std::process::Output;

use crate::common::wait_until;

/// The way into a machine that has booted.
pub trait Inside {
    /// Run a script as root with `sh -euc`, for at most [`script_limit`].
    fn output(&self, script: &str) -> Output;
    /// Restart it, as the machine's `reboot` does; not until all of it has started, as something may wait.
    fn reboot(&mut self);
}

/// What every script finds around it.
pub const ENVIRONMENT: [&str; 5] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "TERM=dumb",
    "SYSTEMD_PAGER=",
];

/// Longest that a script may run, in seconds.
pub fn script_limit() -> u32 {
    60 * crate::common::patience()
}

/// Whether all that was to be started at boot has been.
pub fn has_started(inside: &dyn Inside) -> bool {
    let state = text(&inside.output("systemctl is-system-running").stdout);
    ["running\n", "degraded\n"].contains(&state.as_str())
}

pub struct Machine {
    inside: Box<dyn Inside>,
}

impl Machine {
    /// One that has booted, without a failed unit.
    pub fn new(inside: impl Inside + 'static) -> Self {
        let machine = Machine { inside: Box::new(inside) };
        assert_eq!(
            machine.sh("systemctl list-units --failed --plain --no-legend"),
            "",
            "units failed to start"
        );
        machine
    }

    /// Run a script inside: what it printed. It must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.inside.output(script);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if !output.status.success() {
            panic!("{script}\n{}: {out}{err}", output.status);
        }
        out
    }

    /// Run a script that must fail: what it printed.
    pub fn fails(&self, script: &str) -> String {
        let output = self.inside.output(script);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success(), "succeeded: {script}\n{all}");
        all
    }

    /// Wait until a script succeeds.
    pub fn wait(&self, script: &str) {
        wait_until(script, || self.inside.output(script).status.success());
    }

    /// Write a file inside.
    pub fn write(&self, path: &str, content: &str) {
        self.sh(&format!(
            "mkdir -p \"$(dirname '{path}')\"; cat >'{path}' <<'END-OF-FILE'\n{content}\nEND-OF-FILE"
        ));
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        let line = self.sh(&format!("systemctl show --property={name} '{unit}'"));
        line.trim_end().strip_prefix(&format!("{name}=")).unwrap().to_owned()
    }

    pub fn reboot(&mut self) {
        self.inside.reboot();
    }
}

impl Drop for Machine {
    /// The end of the journal, for who reads of a failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.inside.output("journalctl --no-pager -n 60 -o short-monotonic").stdout;
            eprintln!("the end of the machine's journal:\n{}", text(&journal));
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
