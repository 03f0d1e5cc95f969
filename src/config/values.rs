//! Values with a grammar of their own: text in, validated value out. Pure.
//!
//! A refusal is a phrase that follows the key's name in a message (`TRUSTEE_URL has no host`); it repeats nothing of the
//! value that could be a secret.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use url::Url;

/// What is wrong with a value, as a phrase that follows the key's name.
pub(super) type Flaw = Cow<'static, str>;

/// Port of a peer that is given without one. Unassigned at IANA, and free of every service of the solution.
pub const PEER_PORT: u16 = 5390;

/// Path under the Trustee's base URL where the key broker answers (kbs.md 1): cai adds it, users must not.
const KBS_PATH: &str = "/kbs/v0";

/// Longest object key in OSS, in bytes.
const OBJECT_KEY_BYTES: usize = 1023;

/// Longest name of a file on Linux, in bytes; a longer component of a key could not be shown in the mount.
const NAME_BYTES: usize = 255;

/// Directories that a mount would hide from the running system, and trees of the kernel.
const SYSTEM_DIRECTORIES: [&str; 16] = [
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin",
    "/sys", "/tmp", "/usr", "/var",
];
const KERNEL_TREES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// An http or https URL with a host and a path at most, without trailing slash (a bare host keeps the one `Url` gives
/// it).
pub(super) fn http_url(text: &str) -> Result<Url, Flaw> {
    if !text.contains("://") {
        return Err("does not begin with http:// or https://".into());
    }
    if text.contains(char::is_whitespace) {
        return Err("contains white space".into());
    }
    let mut url = Url::parse(text).map_err(|error| Flaw::from(format!("is not a URL ({error})")))?;
    let flaw = match url.scheme() {
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
            "holds a user name or password"
        }
        "http" | "https" if url.query().is_some() => "has a query",
        "http" | "https" if url.fragment().is_some() => "has a fragment",
        "http" | "https" if url.port() == Some(0) => "has port 0",
        "http" | "https" => {
            let path = url.path().trim_end_matches('/').to_owned();
            url.set_path(&path);
            return Ok(url);
        }
        _ => "is neither http nor https",
    };
    Err(flaw.into())
}

/// Base URL of the Trustee.
pub(super) fn trustee_url(text: &str) -> Result<Url, Flaw> {
    let url = http_url(text)?;
    // With a closing slash, so that `/kbs/v0` is found and `/kbs/v0x` is not.
    if format!("{}/", url.path()).contains(&format!("{KBS_PATH}/")) {
        return Err(format!("contains {KBS_PATH}, which cai adds itself").into());
    }
    Ok(url)
}

/// Endpoint of the object store: scheme, host and port.
pub(super) fn endpoint(text: &str) -> Result<Url, Flaw> {
    let url = if text.contains("://") { http_url(text) } else { http_url(&format!("https://{text}")) }?;
    if url.path() != "/" {
        return Err("has a path, which belongs into MODEL_OSS_BUCKET_PATH".into());
    }
    Ok(url)
}

/// `oss.proxy`: scheme, host and port, no more. A password does not belong into a file that everybody may read.
pub(super) fn proxy(text: &str) -> Result<Url, Flaw> {
    let url = http_url(text)?;
    match (url.scheme(), url.path()) {
        ("http", "/") => Ok(url),
        ("http", _) => Err("has a path".into()),
        _ => Err("is not http: the proxy itself is spoken to in the open".into()),
    }
}

/// Region ID in the name of a public OSS endpoint; `None` for names that do not hold it (acceleration, finance cloud,
/// own domains, addresses).
///
/// Source: oss.md 1.1.
pub(super) fn region_of(endpoint: &Url) -> Option<String> {
    let labels: Vec<&str> = endpoint.domain()?.split('.').collect();
    let region = match labels.as_slice() {
        [first, "aliyuncs", "com"] => first.strip_prefix("oss-")?,
        [region, "oss", "aliyuncs", "com"] => region,
        _ => return None,
    };
    let region = region.strip_suffix("-internal").unwrap_or(region);
    let opaque = ["accelerate", "finance", "hzjbp"].iter().any(|word| region.contains(word));
    // A country or area of two letters comes first in every region ID.
    let shaped = region.split_once('-').is_some_and(|(area, rest)| area.len() == 2 && !rest.is_empty());
    (shaped && !opaque).then(|| region.to_owned())
}

/// `MODEL_OSS_REGION`.
pub(super) fn region(text: &str) -> Result<String, Flaw> {
    if text.starts_with("oss-") {
        return Err("begins with oss-, which belongs to endpoints only".into());
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("is not a region ID".into());
    }
    Ok(text.to_owned())
}

/// `oss.ram_role`.
///
/// Source: RAM's rules for role names; the name becomes a part of a URL.
pub(super) fn ram_role(text: &str) -> Result<String, Flaw> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) || text.starts_with('.') {
        return Err("is not the name of a RAM role".into());
    }
    Ok(text.to_owned())
}

/// ARN of a RAM role (`kind` is `role`) or identity provider (`oidc-provider`).
pub(super) fn arn(text: &str, kind: &str) -> Result<String, Flaw> {
    let rest = text.strip_prefix("acs:ram::").and_then(|rest| rest.split_once(':'));
    let name = rest.and_then(|(account, what)| {
        let is_account = !account.is_empty() && account.bytes().all(|b| b.is_ascii_digit());
        what.strip_prefix(kind)?.strip_prefix('/').filter(|_| is_account)
    });
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
    match name {
        Some(name) if !name.is_empty() && name.len() <= 128 && name.chars().all(allowed) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("is not acs:ram::ACCOUNT:{kind}/NAME").into()),
    }
}

/// `oss.sts_endpoint`: what is sent there opens a role, so it is never sent in the open.
pub(super) fn sts_endpoint(text: &str) -> Result<Url, Flaw> {
    let url = http_url(text)?;
    let local = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    };
    if url.path() != "/" {
        return Err("has a path".into());
    }
    if url.scheme() != "https" && !local {
        return Err("is plain http".into());
    }
    Ok(url)
}

/// `MODEL_KEY_ID`: `kbs://[host[:port]]/repository/type/tag[?query]`, kept as it is.
///
/// Source: kbs.md 6.1.
pub(super) fn key_id(text: &str) -> Result<String, Flaw> {
    let rest = text.strip_prefix("kbs://").ok_or("does not begin with kbs://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = rest.split_once('/').ok_or("has no path")?;
    let allowed =
        |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    if !allowed(host, ".-:[]") {
        return Err("has a host with characters no host has".into());
    }
    if !allowed(query, "_.~=&-") {
        return Err("has a query with characters that need no place there".into());
    }
    let segments: Vec<&str> = path.split('/').collect();
    if segments.len() != 3 {
        let slashes =
            if host.is_empty() { "" } else { "; without a host it begins with three slashes, kbs:///" };
        return Err(format!("has {} parts in its path instead of 3{slashes}", segments.len()).into());
    }
    if segments.iter().any(|segment| segment.is_empty()) {
        return Err("has an empty part in its path".into());
    }
    if !segments.iter().all(|segment| allowed(segment, "_-.") && !segment.starts_with('.')) {
        return Err("has a character in its path that resource names cannot have".into());
    }
    Ok(text.to_owned())
}

/// `MODEL_OSS_BUCKET_PATH`: the bucket, and the prefix empty or with exactly one trailing slash.
///
/// Source: oss.md 1.11 (as ossfs reads it, and as liberal), 1.2 (keys cai refuses).
pub(super) fn bucket_path(text: &str) -> Result<(String, String), Flaw> {
    if text.contains("://") {
        return Err("is a URL instead of BUCKET:/PATH/".into());
    }
    let (bucket, path) = text.split_once(':').unwrap_or((text, ""));
    if bucket.contains('/') {
        return Err("has no colon between bucket and path".into());
    }
    let named = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !bucket.starts_with('-')
        && !bucket.ends_with('-');
    if !named {
        return Err("does not begin with the name of a bucket".into());
    }
    let path = path.strip_prefix('/').unwrap_or(path).trim_end_matches('/');
    if path.is_empty() {
        return Ok((bucket.to_owned(), String::new()));
    }
    for component in path.split('/') {
        match component {
            "" => return Err("has an empty part in its path".into()),
            "." | ".." => return Err("has . or .. in its path".into()),
            _ if component.len() > NAME_BYTES => {
                return Err("has a part longer than 255 bytes in its path".into());
            }
            _ => {}
        }
    }
    if path.len() >= OBJECT_KEY_BYTES {
        return Err("has a path longer than an object key can be".into());
    }
    Ok((bucket.to_owned(), format!("{path}/")))
}

/// Credentials go into HTTP headers and come from a copy-and-paste: printable ASCII, no space.
pub(super) fn credential(text: &str) -> Result<&str, Flaw> {
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err("contains a space or a character outside ASCII (a slip in copying?)".into())
    }
}

/// `TRUSTEE_POLICY`.
pub(super) fn policy(text: &str) -> Result<String, Flaw> {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
        Ok(text.to_owned())
    } else {
        Err("is not one policy ID".into())
    }
}

/// `MODEL_SERVICE_PORT`.
pub(super) fn port(text: &str) -> Result<u16, Flaw> {
    match text.parse() {
        Ok(port) if port != 0 && !text.starts_with('+') => Ok(port),
        Ok(_) | Err(_) => Err("is not a port".into()),
    }
}

/// `MODEL_SHARING_PEER`: addresses in the order given, each once.
pub(super) fn peers(text: &str) -> Result<Vec<SocketAddr>, Flaw> {
    let mut peers = Vec::new();
    for entry in text.split(|c: char| c.is_whitespace() || c == ',').filter(|entry| !entry.is_empty()) {
        let peer = peer(entry)
            .ok_or_else(|| Flaw::from(format!("holds `{entry}`, which is not the address of a machine")))?;
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    Ok(peers)
}

/// `IP`, `IP:PORT` or `[IPv6]:PORT` of one machine.
fn peer(entry: &str) -> Option<SocketAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, PEER_PORT),
        Err(_) => entry.parse().ok()?,
    };
    let ip = address.ip();
    let nobody =
        ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::from([255; 4]) || address.port() == 0;
    (!nobody).then_some(address)
}

/// An absolute path, normalised: no trailing, doubled or `/./` slashes; `..` refused.
pub(super) fn path(text: &str) -> Result<PathBuf, Flaw> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("is not an absolute path".into());
    }
    if text.contains(char::is_control) {
        return Err("contains a control character".into());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("contains ..".into());
    }
    Ok(path.components().collect())
}

/// `MODEL_MOUNT_POINT`.
pub(super) fn mount_point(text: &str) -> Result<PathBuf, Flaw> {
    let path = path(text)?;
    if path == Path::new("/") || SYSTEM_DIRECTORIES.iter().any(|system| path == Path::new(system)) {
        return Err("would hide a directory of the running system".into());
    }
    if KERNEL_TREES.iter().any(|tree| path.starts_with(tree)) {
        return Err("lies in a tree of the kernel".into());
    }
    Ok(path)
}

/// `mount.permissions`: octal digits, read bits only, at least one.
pub(super) fn permissions(text: &str) -> Result<u32, Flaw> {
    let digits = text.len() <= 4 && !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode & !0o444 != 0 => {
            Err("has other bits than read, on a read-only mount".into())
        }
        Ok(0) if digits => Err("lets nobody read".into()),
        Ok(mode) if digits => Ok(mode),
        Ok(_) | Err(_) => Err("is not octal permission bits".into()),
    }
}

/// `cache.reserve_bytes`, `mount.memory_bytes` as text: `1GiB`, `512 MiB`, `1073741824`.
pub(super) fn size(text: &str) -> Result<u64, Flaw> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("has a unit other than KiB, MiB, GiB and TiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| Flaw::from("does not begin with a whole number"))?;
    number.checked_mul(1 << shift).ok_or(Flaw::from("is larger than any disk"))
}

#[cfg(test)]
mod tests;
