//! What is around the agent inside the container: a stand-in Trustee and OSS in a network of their own, a model that was
//! encrypted and uploaded with the package's own commands, a TEE's quoting library, and the operator's configuration.

#[path = "../common/tee/bytes.rs"]
#[allow(dead_code)]
mod bytes;
#[path = "../common/tee/library.rs"]
#[allow(dead_code)]
mod library;

use std::path::Path;

pub use library::compiler;

use crate::machine::Machine;

/// Every file of the mounted model is what was encrypted.
pub const MODEL_IS_RIGHT: &str = "cd \"$(cat /srv/world/point)\" && sha256sum --quiet -c /srv/world/sums";

/// The network outside: the Trustee, OSS, clients. Down and up again with a reboot.
const NETWORK: &str = "\
[Unit]
Description=The network outside
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip netns add outside
ExecStart=ip link add near type veth peer name far netns outside
ExecStart=ip addr add 10.77.0.2/24 dev near
ExecStart=ip link set near up
ExecStart=ip -n outside addr add 10.77.0.1/24 dev far
ExecStart=ip -n outside link set far up
ExecStart=ip -n outside link set lo up
[Install]
WantedBy=multi-user.target";

/// The stand-ins are this machine's program, with this machine's libraries: the container may have older ones.
const WORLD: &str = "\
[Unit]
Description=Stand-in Trustee and OSS
Requires=outside.service
After=outside.service
[Service]
ExecStart=ip netns exec outside /mnt/libraries/ld-linux-x86-64.so.2 --library-path /mnt/libraries /mnt/binaries/cai-sandbox serve \
  --listen 10.77.0.1:8081 --oss-listen 10.77.0.1:8082 --cloud-listen 10.77.0.1:8083 --control-listen 10.77.0.1:8084 \
  --state-dir /srv/world/oss --bucket conf-ai --region cn-beijing --access-key-id demo --access-key-secret-file /srv/world/secret \
  --resource default/aliyun/model-decryption-key=/srv/world/password --token-cert-out /srv/world/signer.pem";

/// As the vendor's document has it, with the values of this world.
const ENV: &str = "\
TRUSTEE_URL=\"http://10.77.0.1:8081/\"
MODEL_KEY_ID=\"kbs:///default/aliyun/model-decryption-key\"
MODEL_OSS_BUCKET_PATH=\"conf-ai:/qwen-encrypted/\"
MODEL_OSS_ENDPOINT=\"http://10.77.0.1:8082\"
MODEL_OSS_REGION=cn-beijing
MODEL_OSS_ACCESS_KEY_ID=\"demo\"
MODEL_OSS_SECRET_ACCESS_KEY=\"an-access-key-secret\"
MODEL_ENCRYPTION_METHOD=\"gocryptfs\"";

/// What a unit of an operator would not have: tests do not wait five seconds, and start more often than five times in ten.
const QUICK: &str = r#"[Unit]
StartLimitIntervalSec=0
[Service]
RestartSec=200ms
ExecStopPost=-+/usr/bin/nsenter --mount=/proc/1/ns/mnt -- /bin/sh -c 'stat -f /tmp/model >/dev/null 2>&1 || umount -l /tmp/model'
"#;

/// The TEE's quoting library, for the container to load.
pub fn build_library(directory: &Path) {
    let measured = bytes::Measured::default();
    library::giving(directory, &bytes::quote_v4(&[0; 64], &measured));
}

/// Serve the model at `point` from the next start on; `more` lines of cai.env.
pub fn configure(c: &Machine, point: &str, more: &str) {
    c.sh(&format!(
        "cat >/etc/cai/cai.env <<'END'\n{ENV}\nMODEL_MOUNT_POINT={point} # The mount point\n{more}\nEND\necho {point} >/srv/world/point"
    ));
}

pub fn set_up(c: &Machine) {
    c.sh(
        "cp /mnt/packages/usr/lib/x86_64-linux-gnu/libtdx_attest.so.1 /usr/lib/x86_64-linux-gnu/ && ldconfig",
    );
    c.write("/etc/systemd/system/outside.service", NETWORK);
    c.write("/etc/systemd/system/world.service", WORLD);
    c.write("/etc/systemd/system/cai.service.d/quick.conf", QUICK);
    c.write("/etc/cai/cai.toml.d/here.toml", "[attest]\ntee = \"tdx\"\nquote = \"libtdx-attest\"");
    c.sh("mkdir -p /srv/world; echo a-password >/srv/world/password; echo an-access-key-secret >/srv/world/secret");
    c.sh("systemctl daemon-reload; systemctl enable --now outside; systemctl start world");
    configure(c, "/srv/models/llm", "");
    c.sh("cd /srv/world; /mnt/libraries/ld-linux-x86-64.so.2 --library-path /mnt/libraries /mnt/binaries/cai-sandbox sample-model --mib 12 plain");
    c.sh("cd /srv/world/plain; find . -type f | sort | xargs sha256sum >../sums");
    c.sh("cd /srv/world; cai encrypt plain cipher --passfile password");
    c.wait("test -s /srv/world/signer.pem");
    assert!(c.sh("cai check-config").contains("conf-ai"));
    c.sh("cai upload /srv/world/cipher");
    c.sh("rm -r /srv/world/cipher");
}
