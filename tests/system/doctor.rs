//! What an operator asks of a machine that serves: `cai doctor` as root, as the daemon's user and as anybody, and `cai report`.

use crate::machine::Machine;

pub fn tells_of_a_serving_machine(c: &Machine) {
    let said = c.sh("cai doctor");
    for line in [
        "ok      config.readable     every file is cai's to read",
        "ok      daemon.state        Serving: 5 files at /srv/models/llm",
        "ok      daemon.units        cai.service is active",
        "ok      daemon.units        cai-gate.service is active",
        "ok      daemon.units        cai-helper.socket is active",
        "ok      evidence.quote      a TDX quote from libtdx-attest",
        "ok      key.release         the key (11 bytes) is released to this machine;",
        "ok      mount.point         the model can be read at /srv/models/llm",
        "note    egress.address      towards the Trustee (10.77.0.1) from 10.77.0.2",
    ] {
        assert!(said.lines().any(|found| found.starts_with(line)), "no {line} in\n{said}");
    }
    // Through the socket that the daemon asks through.
    let said = c.sh("runuser -u cai -- cai doctor");
    assert!(said.contains("ok      key.release "), "{said}");
    let said = c.sh("runuser -u nobody -- cai doctor");
    assert!(
        said.contains("unseen  config.valid        /etc/cai/cai.env is not for this user to read"),
        "{said}"
    );
    // Behind who hangs up nothing stays.
    c.wait("test \"$(systemctl list-units --plain --no-legend 'cai-helper@*' | wc -l)\" = 1");
}

pub fn reports_without_secrets(c: &Machine) {
    c.sh("cd /srv/world && cai report --output r.tar.gz && mkdir r && tar -xzf r.tar.gz -C r --strip-components=1");
    c.sh("grep -q 'Mounting -> Serving' /srv/world/r/journal/cai.txt && grep -q 'cai-gate.service' /srv/world/r/units.txt");
    c.sh("grep -q '\"State\": \"Serving\"' /srv/world/r/status.json && test -s /srv/world/r/journal/cai-helper.txt");
    c.fails("grep -r -e a-password -e an-access-key-secret /srv/world/r");
    c.sh("rm -r /srv/world/r /srv/world/r.tar.gz");
}
