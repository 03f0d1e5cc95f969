//! What was booted, by the names that policies and reference values use.
//!
//! Source: the attestation policy and the claims of Alibaba Cloud's Trustee (`deps/verifier/src/tdx/claims.rs` of the old
//! generation, the default policy on `uefi_event_logs` of the current one), and the reference values that cryptpilot
//! computes from a disk image. A kernel started without GRUB (td-shim, direct boot by the host) has no value of these names.

use std::collections::BTreeMap;

use super::Verifier;
use super::cursor::Cursor;
use super::eventlog::Event;

/// `EV_IPL`: what GRUB measures, with a line that says what it is.
const IPL: u32 = 0x0d;

/// `EV_EFI_BOOT_SERVICES_APPLICATION`: a program the firmware started, such as shim and GRUB.
const APPLICATION: u32 = 0x8000_0003;

/// How GRUB starts the line of a kernel's command line, in its versions.
const COMMAND_LINES: [&str; 3] = ["grub_cmd linux", "kernel_cmdline", "grub_kernel_cmdline"];

/// `measurement.kernel.SHA-384` and its like, with every digest measured under that name. The old generation of verifiers
/// spells the algorithm `SHA384`.
pub(super) fn values(events: &[Event<'_>], verifier: Verifier) -> BTreeMap<String, Vec<String>> {
    let algorithm = match verifier {
        Verifier::Legacy => "SHA384",
        Verifier::Current => "SHA-384",
    };
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in events {
        let Some(digest) = event.digest.map(hex::encode) else { continue };
        for component in components(event) {
            let known = values.entry(format!("measurement.{component}.{algorithm}")).or_default();
            if !known.contains(&digest) {
                known.push(digest.clone());
            }
        }
    }
    values
}

/// What an event measures.
fn components(event: &Event<'_>) -> Vec<&'static str> {
    match event.kind {
        APPLICATION => {
            let path = device_path(event.data).unwrap_or_default();
            ["shim", "grub"].into_iter().filter(|name| path.contains(name)).collect()
        }
        IPL => {
            let line = String::from_utf8_lossy(event.data);
            let says = |word: &str, path: &str| line.contains(word) || line.starts_with(path);
            let command_line = COMMAND_LINES.iter().any(|start| line.starts_with(start));
            let measured = [
                ("kernel", says("Kernel", "/boot/vmlinuz")),
                ("kernel_cmdline", command_line),
                ("initrd", says("Initrd", "/boot/initramfs")),
            ];
            measured.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
        }
        _ => Vec::new(),
    }
}

/// The readable characters of a program's device path, in lower case: names in it are UTF-16.
fn device_path(data: &[u8]) -> Option<String> {
    let mut rest = Cursor(data);
    let _location_length_and_link_address = rest.take(24)?;
    let len = usize::try_from(rest.u64()?).ok()?;
    let path = rest.take(len)?;
    let readable = path.iter().filter(|byte| byte.is_ascii_graphic() || **byte == b' ');
    Some(readable.map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(path: &str) -> Vec<u8> {
        let name: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        [&[0; 24][..], &(name.len() as u64).to_le_bytes(), &name].concat()
    }

    fn measured(kind: u32, data: &[u8], digest: u8) -> Event<'_> {
        Event { register: 2, kind, digest: Some([digest; 48]), data }
    }

    #[test]
    fn components_are_named_as_policies_name_them() {
        let (shim, grub) =
            (application("\\EFI\\alinux\\SHIMX64.EFI"), application("\\EFI\\alinux\\grubx64.efi"));
        let events = [
            measured(APPLICATION, &shim, 1),
            measured(APPLICATION, &grub, 2),
            measured(IPL, b"grub_linuxefi Kernel", 3),
            measured(IPL, b"grub_kernel_cmdline /vmlinuz root=/dev/vda1\0", 4),
            measured(IPL, b"grub_linuxefi Initrd", 5),
            measured(IPL, b"grub_linuxefi Kernel", 6),
            measured(IPL, b"grub_linuxefi Kernel", 6),
            measured(IPL, b"grub_cmd: ls", 7),
            measured(4, b"Kernel", 8),
        ];
        let digest = |byte: &str| byte.repeat(48);
        let expected = [
            ("measurement.grub.SHA-384", vec![digest("02")]),
            ("measurement.initrd.SHA-384", vec![digest("05")]),
            ("measurement.kernel.SHA-384", vec![digest("03"), digest("06")]),
            ("measurement.kernel_cmdline.SHA-384", vec![digest("04")]),
            ("measurement.shim.SHA-384", vec![digest("01")]),
        ];
        let expected = expected.map(|(name, digests)| (name.to_owned(), digests));
        assert_eq!(values(&events, Verifier::Current), BTreeMap::from(expected));
        assert!(values(&events, Verifier::Legacy).contains_key("measurement.kernel.SHA384"));
    }

    #[test]
    fn kernel_and_initrd_named_by_path_are_found() {
        let events = [
            measured(IPL, b"/boot/vmlinuz-5.10", 1),
            measured(IPL, b"/boot/initramfs-5.10.img", 2),
            measured(IPL, b"kernel_cmdline: ro", 3),
            measured(IPL, b"grub_cmd linux /vmlinuz", 4),
        ];
        let found: Vec<usize> = values(&events, Verifier::Current).values().map(Vec::len).collect();
        assert_eq!(found, [1, 1, 2]);
    }

    #[test]
    fn device_path_longer_than_its_event_or_absent_names_nothing() {
        let mut cut = application("\\shim");
        cut[24] += 1;
        assert!(values(&[measured(APPLICATION, &cut, 1)], Verifier::Current).is_empty());
        assert!(values(&[measured(APPLICATION, b"shim", 1)], Verifier::Current).is_empty());
        let without = Event { digest: None, ..measured(IPL, b"Kernel", 1) };
        assert!(values(&[without], Verifier::Current).is_empty());
    }
}
