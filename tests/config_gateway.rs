//! Claim: the service port's keys mean what they say, and what does not fit together is refused with the key at fault.

use std::path::Path;
use std::time::Duration;

use cai::config::{self, CertificateRule, Entrance, Facts, FileKind, Gateway, SourceFile};

const ENV: &str = "TRUSTEE_URL=https://trustee.example.com/cai\n\
    MODEL_KEY_ID=kbs:///default/aliyun/key\n\
    MODEL_OSS_BUCKET_PATH=conf-ai:/qwen/\n\
    MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
    MODEL_MOUNT_POINT=/tmp/model\n";

/// The gateway's part, or every problem.
fn gateway(env: &str, toml: &str) -> Result<Gateway, Vec<String>> {
    let file = |name: &str, kind, text: String| SourceFile {
        name: name.to_owned(),
        kind,
        text: text.into(),
        mode: Some(0o640),
    };
    let files = [
        file("cai.toml", FileKind::Toml, format!("[gateway]\n{toml}")),
        file("cai.env", FileKind::Env, format!("{ENV}{env}")),
    ];
    let facts = Facts { model_gid: Some(990), sandbox: false };
    match config::parse(&files, Path::new("/"), &facts) {
        Ok((settings, _)) => Ok(settings.gateway),
        Err(problems) => Err(problems
            .problems
            .iter()
            .map(|problem| format!("{}: {}", problem.at, problem.message))
            .collect()),
    }
}

#[test]
fn port_is_captured_mapped_or_not_there() {
    let nothing = gateway("", "").unwrap();
    assert_eq!((nothing.entrance, nothing.capture_port), (None, 40_000));
    assert_eq!(nothing.certificate, CertificateRule::Auto);
    assert_eq!((nothing.refresh, nothing.drain), (Duration::from_secs(600), Duration::from_secs(30)));
    assert_eq!(nothing.plaintext_paths, Vec::<String>::new());

    let captured = gateway("MODEL_SERVICE_PORT=8080\n", "capture_port = 40001\n").unwrap();
    assert_eq!(captured.entrance, Some(Entrance::Capture { port: 40_001, service_port: 8080 }));
    let mapping = "listen = \"[::]:8443\"\nbackend = \"127.0.0.1:8080\"\nplaintext_paths = [\"/health\", \"/ping?a=b\"]\n";
    let mapped = gateway("MODEL_SERVICE_PORT=8080\n", mapping).unwrap();
    let (listen, backend) = ("[::]:8443".parse().unwrap(), "127.0.0.1:8080".parse().unwrap());
    assert_eq!(mapped.entrance, Some(Entrance::Mapping { listen, backend }));
    assert_eq!(mapped.plaintext_paths, ["/health", "/ping?a=b"]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    for (env, toml, expected) in [
        ("", "listen = \"0.0.0.0:1\"\n", "cai.toml:2: gateway.listen is set, and gateway.backend is not"),
        ("", "backend = \"1.2.3.4:1\"\n", "cai.toml:2: gateway.backend is set, and gateway.listen is not"),
        ("", "listen = \"8443\"\n", "cai.toml:2: gateway.listen is not ADDRESS:PORT"),
        ("", "backend = \"vllm:8000\"\n", "cai.toml:2: gateway.backend is not ADDRESS:PORT"),
        ("", "listen = \"0.0.0.0:0\"\n", "cai.toml:2: gateway.listen is not ADDRESS:PORT"),
        (
            "",
            "listen = \"0.0.0.0:1\"\nbackend = \"127.0.0.1:1\"\n",
            "cai.toml:3: gateway.backend is gateway.listen itself",
        ),
        (
            "MODEL_SERVICE_PORT=40000\n",
            "",
            "cai.env:6: MODEL_SERVICE_PORT is gateway.capture_port, where its connections are redirected to",
        ),
        (
            "",
            "plaintext_paths = [\"health\"]\n",
            "cai.toml:2: gateway.plaintext_paths has a path that is not / and up to 1024 visible ASCII characters",
        ),
        (
            "",
            "plaintext_paths = \"/health\"\n",
            "cai.toml:2: gateway.plaintext_paths is not a list of texts in quotes",
        ),
        ("", "refresh_secs = 0\n", "cai.toml:2: gateway.refresh_secs is out of range"),
    ] {
        assert_eq!(gateway(env, toml).unwrap_err(), [expected], "{env}{toml}");
    }
    let space = gateway("", "plaintext_paths = [\"/a b\"]\n").unwrap_err();
    assert!(space[0].contains("gateway.plaintext_paths has a path"), "{space:?}");
}
