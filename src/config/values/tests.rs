use std::net::SocketAddr;
use std::path::PathBuf;

use super::*;

#[test]
fn trustee_url_keeps_host_and_path_without_trailing_slash() {
    for (text, expected) in [
        (
            "http://alb-x.cn-beijing.alb.aliyuncsslb.com/xxxx/",
            "http://alb-x.cn-beijing.alb.aliyuncsslb.com/xxxx",
        ),
        ("https://trustee.example.com:8443/a/b//", "https://trustee.example.com:8443/a/b"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("http://gw:8081/api/kbs/v0x", "http://gw:8081/api/kbs/v0x"),
    ] {
        assert_eq!(trustee_url(text).unwrap().as_str(), expected, "{text}");
    }
}

#[test]
fn trustee_url_that_is_none_says_why() {
    for (text, flaw) in [
        ("trustee.example.com", "does not begin with http:// or https://"),
        ("ftp://host", "is neither http nor https"),
        ("http://", "is not a URL (empty host)"),
        ("http://host:99999", "is not a URL (invalid port number)"),
        ("http://host:0", "has port 0"),
        ("http://user@host", "holds a user name or password"),
        ("http://:pw@host", "holds a user name or password"),
        ("http://host/?a", "has a query"),
        ("http://host/#a", "has a fragment"),
        ("http://ho st/", "contains white space"),
        ("http://host/kbs/v0", "contains /kbs/v0, which cai adds itself"),
        ("http://host/a/kbs/v0/auth", "contains /kbs/v0, which cai adds itself"),
    ] {
        assert_eq!(trustee_url(text).unwrap_err(), flaw, "{text}");
    }
}

#[test]
fn endpoint_is_a_bare_host_over_https_or_a_url_without_path() {
    for (text, expected) in [
        ("oss-cn-beijing.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com/"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000/"),
        ("localhost:9000", "https://localhost:9000/"),
    ] {
        assert_eq!(endpoint(text).unwrap().as_str(), expected);
    }
    assert_eq!(
        endpoint("https://oss-cn-beijing.aliyuncs.com/model").unwrap_err(),
        "has a path, which belongs into MODEL_OSS_BUCKET_PATH"
    );
    assert_eq!(endpoint("oss://x").unwrap_err(), "is neither http nor https");
}

#[test]
fn region_is_derived_from_region_endpoints_only() {
    for (host, expected) in [
        ("oss-cn-beijing.aliyuncs.com", Some("cn-beijing")),
        ("oss-cn-beijing-internal.aliyuncs.com", Some("cn-beijing")),
        ("oss-ap-southeast-1-internal.aliyuncs.com", Some("ap-southeast-1")),
        ("cn-hongkong.oss.aliyuncs.com", Some("cn-hongkong")),
        ("oss-accelerate.aliyuncs.com", None),
        ("oss-accelerate-overseas.aliyuncs.com", None),
        ("oss-cn-hzfinance.aliyuncs.com", None),
        ("oss-cn-hzjbp-a-internal.aliyuncs.com", None),
        ("s3.oss-cn-beijing.aliyuncs.com", None),
        ("oss-cn-beijing.aliyuncs.com.evil.example", None),
        ("models.example.com", None),
        ("127.0.0.1:9000", None),
        ("oss-cn.aliyuncs.com", None),
    ] {
        assert_eq!(region_of(&endpoint(host).unwrap()).as_deref(), expected, "{host}");
    }
}

#[test]
fn region_with_the_prefix_of_an_endpoint_is_refused() {
    assert_eq!(region("cn-beijing").unwrap(), "cn-beijing");
    assert_eq!(region("oss-cn-beijing").unwrap_err(), "begins with oss-, which belongs to endpoints only");
    assert_eq!(region("CN Beijing").unwrap_err(), "is not a region ID");
}

#[test]
fn key_id_follows_the_grammar() {
    for text in [
        "kbs:///default/aliyun/model-decryption-key",
        "kbs://kbs.example.com:8080/a/b/c",
        "kbs:///a/b/c.d-e_f?version=1",
    ] {
        assert_eq!(key_id(text).unwrap(), text);
    }
    for (text, flaw) in [
        ("default/aliyun/key", "does not begin with kbs://"),
        ("kbs+plugin:///a/b/c", "does not begin with kbs://"),
        ("kbs://host", "has no path"),
        (
            "kbs://default/aliyun/key",
            "has 2 parts in its path instead of 3; without a host it begins with three slashes, kbs:///",
        ),
        ("kbs:///a/b", "has 2 parts in its path instead of 3"),
        ("kbs:///a/b/c/d", "has 4 parts in its path instead of 3"),
        ("kbs:///a//c", "has an empty part in its path"),
        ("kbs:///../b/c", "has a character in its path that resource names cannot have"),
        ("kbs:///a/.b/c", "has a character in its path that resource names cannot have"),
        ("kbs:///a/b/c%2f", "has a character in its path that resource names cannot have"),
        ("kbs:///a/b/c#d", "has a character in its path that resource names cannot have"),
        ("kbs://u@h/a/b/c", "has a host with characters no host has"),
        ("kbs:///a/b/c?x=/", "has a query with characters that need no place there"),
    ] {
        assert_eq!(key_id(text).unwrap_err(), flaw, "{text}");
    }
}

#[test]
fn bucket_path_is_read_as_liberally_as_ossfs_reads_it() {
    for (text, bucket, prefix) in [
        ("conf-ai:/qwen3-32b-gocryptfs/", "conf-ai", "qwen3-32b-gocryptfs/"),
        ("conf-ai:/qwen3-32b-gocryptfs", "conf-ai", "qwen3-32b-gocryptfs/"),
        ("conf-ai:a/b//", "conf-ai", "a/b/"),
        ("conf-ai:/", "conf-ai", ""),
        ("conf-ai:", "conf-ai", ""),
        ("conf-ai", "conf-ai", ""),
        ("b12:/a b/ü:c", "b12", "a b/ü:c/"),
    ] {
        assert_eq!(bucket_path(text).unwrap(), (bucket.to_owned(), prefix.to_owned()), "{text}");
    }
    let long = format!("conf-ai:/{}", "a".repeat(256));
    let deep = format!("conf-ai:/{}", "a/".repeat(512));
    for (text, flaw) in [
        ("oss://conf-ai/qwen", "is a URL instead of BUCKET:/PATH/"),
        ("conf-ai/qwen", "has no colon between bucket and path"),
        ("conf-ai/qwen:x", "has no colon between bucket and path"),
        ("ab:/x", "does not begin with the name of a bucket"),
        ("-conf:/x", "does not begin with the name of a bucket"),
        ("conf-:/x", "does not begin with the name of a bucket"),
        ("Conf:/x", "does not begin with the name of a bucket"),
        (":/x", "does not begin with the name of a bucket"),
        ("conf-ai:/a/../b", "has . or .. in its path"),
        ("conf-ai:/./b", "has . or .. in its path"),
        ("conf-ai:/a//b", "has an empty part in its path"),
        ("conf-ai://a", "is a URL instead of BUCKET:/PATH/"),
        (&long, "has a part longer than 255 bytes in its path"),
        (&deep, "has a path longer than an object key can be"),
    ] {
        assert_eq!(bucket_path(text).unwrap_err(), flaw, "{text}");
    }
}

#[test]
fn credential_with_a_slip_of_copying_is_refused() {
    assert_eq!(credential("LTAI5t+/="), Ok("LTAI5t+/="));
    for text in ["a b", "a\u{a0}b", "schlüssel"] {
        assert!(credential(text).is_err(), "{text:?}");
    }
}

#[test]
fn policy_is_one_word() {
    assert_eq!(policy("default").unwrap(), "default");
    assert!(policy("a b").is_err());
    assert!(policy("a,b").is_err());
}

#[test]
fn port_is_within_its_range() {
    assert_eq!((port("1").unwrap(), port("65535").unwrap()), (1, 65535));
    for text in ["0", "65536", "-1", "+80", "http", "80a", ""] {
        assert_eq!(port(text).unwrap_err(), "is not a port", "{text}");
    }
}

#[test]
fn peers_are_addresses_with_or_without_port() {
    let expect = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
    for (text, expected) in [
        ("172.30.24.146 172.30.24.144", vec!["172.30.24.146:5390", "172.30.24.144:5390"]),
        ("10.0.0.1:80,10.0.0.2, 10.0.0.1:80", vec!["10.0.0.1:80", "10.0.0.2:5390"]),
        ("fd00::1 [fd00::2] [fd00::3]:80", vec!["[fd00::1]:5390", "[fd00::2]:5390", "[fd00::3]:80"]),
        (" , ", vec![]),
    ] {
        assert_eq!(peers(text).unwrap(), expect(&expected), "{text}");
    }
    for entry in
        ["host", "10.0.0", "10.0.0.1:0", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "10.0.0.1/8"]
    {
        let flaw = format!("holds `{entry}`, which is not the address of a machine");
        assert_eq!(peers(&format!("10.9.9.9 {entry}")).unwrap_err(), flaw);
    }
}

#[test]
fn mount_point_is_normalised_and_hides_nothing_of_the_system() {
    for (text, expected) in
        [("/tmp/model", "/tmp/model"), ("/tmp/model/", "/tmp/model"), ("/srv//m/./x", "/srv/m/x")]
    {
        assert_eq!(mount_point(text).unwrap(), PathBuf::from(expected));
    }
    for (text, flaw) in [
        ("tmp/model", "is not an absolute path"),
        ("/tmp/../etc", "contains .."),
        ("/tmp/a\u{7}", "contains a control character"),
        ("/", "would hide a directory of the running system"),
        ("/.", "would hide a directory of the running system"),
        ("/tmp/", "would hide a directory of the running system"),
        ("/etc", "would hide a directory of the running system"),
        ("/proc/self", "lies in a tree of the kernel"),
        ("/dev/shm/m", "lies in a tree of the kernel"),
    ] {
        assert_eq!(mount_point(text).unwrap_err(), flaw, "{text}");
    }
}

#[test]
fn permissions_have_read_bits_only() {
    assert_eq!(
        (permissions("0440"), permissions("444"), permissions("0004")),
        (Ok(0o440), Ok(0o444), Ok(0o004))
    );
    for (text, flaw) in [
        ("0640", "has other bits than read, on a read-only mount"),
        ("4440", "has other bits than read, on a read-only mount"),
        ("0000", "lets nobody read"),
        ("0o440", "is not octal permission bits"),
        ("00440", "is not octal permission bits"),
        ("+440", "is not octal permission bits"),
        ("0480", "is not octal permission bits"),
        ("", "is not octal permission bits"),
    ] {
        assert_eq!(permissions(text).unwrap_err(), flaw, "{text}");
    }
}

#[test]
fn size_takes_binary_units_and_refuses_overflow() {
    for (text, expected) in [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1KiB", 1 << 10),
        ("3 MiB", 3 << 20),
        ("1GiB", 1 << 30),
        ("2TiB", 2 << 40),
    ] {
        assert_eq!(size(text), Ok(expected), "{text}");
    }
    for (text, flaw) in [
        ("1GB", "has a unit other than KiB, MiB, GiB and TiB"),
        ("1.5GiB", "has a unit other than KiB, MiB, GiB and TiB"),
        ("GiB", "does not begin with a whole number"),
        ("", "does not begin with a whole number"),
        ("99999999999999999999", "does not begin with a whole number"),
        ("16777216TiB", "is larger than any disk"),
    ] {
        assert_eq!(size(text).unwrap_err(), flaw, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_refused_or_normal(text in "\\PC{0,40}|/[a-z./]{0,20}|[a-z-]{3,8}:[a-z./]{0,20}") {
        if let Ok(path) = path(&text) {
            proptest::prop_assert!(path.is_absolute());
            proptest::prop_assert_eq!(super::path(path.to_str().unwrap()).unwrap(), path);
        }
        if let Ok((bucket, prefix)) = bucket_path(&text) {
            proptest::prop_assert!(prefix.is_empty() || (prefix.ends_with('/') && !prefix.starts_with('/')));
            proptest::prop_assert_eq!(bucket_path(&format!("{bucket}:/{prefix}")).unwrap(), (bucket, prefix));
        }
        if let Ok(url) = trustee_url(&text) {
            proptest::prop_assert_eq!(trustee_url(url.as_str()).unwrap(), url);
        }
        let _ = (endpoint(&text), key_id(&text), peers(&text), permissions(&text), size(&text), region(&text));
    }
}
