//! The service port under systemd: its gate stays through crash, restart and stop of the agent, and opens only on its own stop.

use crate::machine::Machine;
use crate::world::configure;

/// Somebody outside, in plaintext.
const OUTSIDE: &str = "ip netns exec outside curl -s -m 3 http://10.77.0.2:8080/config.json";

pub fn gate_stays(c: &Machine) {
    c.sh("systemd-run --quiet --unit=inference python3 -m http.server 8080 --directory /srv/world/plain");
    c.wait("curl -s -m 3 -o /srv/world/plain-answer http://127.0.0.1:8080/config.json");
    c.sh(OUTSIDE);
    configure(c, "/tmp/model", "MODEL_SERVICE_PORT=8080");
    // The rules first: from here on nobody gets through in plaintext.
    c.sh("systemctl reload cai-gate");
    c.fails(OUTSIDE);
    c.sh("systemctl restart cai");
    c.fails(OUTSIDE);
    c.sh("curl -s -m 3 http://127.0.0.1:8080/config.json");
    let said = c.sh("cai doctor");
    assert!(
        said.contains("ok      port.gate           shut: port 8080 leads to the gateway at 40000\n"),
        "{said}"
    );

    // Who verifies gets through.
    c.sh("systemd-run --quiet --unit=client ip netns exec outside cai connect --as-url http://10.77.0.1:8081/as \
          --as-cert /srv/world/signer.pem");
    let through = "ip netns exec outside curl -s -S -m 10 --proxy http://127.0.0.1:41000 http://10.77.0.2:8080/config.json";
    c.wait(&format!("{through} | cmp - /srv/world/plain/config.json"));

    let before = c.property("cai", "NRestarts");
    c.sh(&format!("kill -KILL \"$(systemctl show -p MainPID --value cai)\"; ! {OUTSIDE}"));
    c.wait(&format!(
        "test \"$(systemctl show -p NRestarts --value cai)\" != {before} && systemctl is-active --quiet cai"
    ));
    c.fails(OUTSIDE);
    c.wait(&format!("{through} | cmp - /srv/world/plain/config.json"));
    c.sh("systemctl stop cai");
    assert_eq!(c.property("cai-gate", "ActiveState"), "active");
    c.fails(OUTSIDE);

    // Whoever opens it stops the agent and its readers with it.
    c.sh("systemctl start cai reader; systemctl stop cai-gate");
    for unit in ["cai", "reader"] {
        assert_eq!(c.property(unit, "ActiveState"), "inactive", "{unit}");
    }
    c.sh(OUTSIDE);
    c.sh("systemctl stop client inference; systemctl start cai reader");
}
