//! Quotes, reports and logs, made and read with offsets written down here once more.

use sha2::{Digest, Sha384};

/// What a TD's quote says, beside its report data.
#[derive(Debug, Clone)]
pub struct Measured {
    pub rtmrs: [[u8; 48]; 4],
    pub td_attributes: [u8; 8],
}

impl Default for Measured {
    fn default() -> Self {
        Measured { rtmrs: [[0; 48]; 4], td_attributes: [0, 0, 0, 0x10, 0, 0, 0, 0] }
    }
}

/// MRTD of the stand-in.
pub const MRTD: [u8; 48] = [0xd7; 48];

/// A version 4 quote; its signature is none.
pub fn quote_v4(report_data: &[u8; 64], measured: &Measured) -> Vec<u8> {
    let mut quote = vec![0; 632];
    quote[..8].copy_from_slice(&[4, 0, 2, 0, 0x81, 0, 0, 0]);
    quote[168..176].copy_from_slice(&measured.td_attributes);
    quote[184..232].copy_from_slice(&MRTD);
    quote[376..568].copy_from_slice(&measured.rtmrs.concat());
    quote[568..632].copy_from_slice(report_data);
    quote.extend(4300u32.to_le_bytes());
    quote.extend([0x55; 4300]);
    quote
}

/// A TDREPORT.
pub fn td_report(report_data: &[u8; 64], measured: &Measured) -> Vec<u8> {
    let mut report = vec![0; 1024];
    report[0] = 0x81;
    report[128..192].copy_from_slice(report_data);
    report[512..520].copy_from_slice(&measured.td_attributes);
    report[528..576].copy_from_slice(&MRTD);
    report[720..912].copy_from_slice(&measured.rtmrs.concat());
    report
}

/// Report data and measurements of a TDREPORT.
pub fn read_td_report(report: &[u8]) -> ([u8; 64], Measured) {
    assert_eq!((report.len(), report[0]), (1024, 0x81));
    let rtmr = |index: usize| report[720 + 48 * index..768 + 48 * index].try_into().unwrap();
    let measured =
        Measured { rtmrs: [0, 1, 2, 3].map(rtmr), td_attributes: report[512..520].try_into().unwrap() };
    (report[128..192].try_into().unwrap(), measured)
}

/// Report data of a version 4 quote.
pub fn report_data_of(quote: &[u8]) -> [u8; 64] {
    assert_eq!(quote[..2], [4, 0]);
    quote[568..632].try_into().unwrap()
}

/// One event with a SHA-384 digest.
pub fn event(register: u32, kind: u32, digest: [u8; 48], data: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    for number in [register, kind, 1] {
        event.extend(number.to_le_bytes());
    }
    event.extend([0x0c, 0x00]);
    event.extend(digest);
    event.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    event.extend(data);
    event
}

/// A log's header, naming SHA-384 alone.
pub fn log_header() -> Vec<u8> {
    let mut header = hex::decode("0000000003000000000000000000000000000000000000000000000021000000").unwrap();
    header.extend(b"Spec ID Event03\0");
    header.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 0x30, 0, 0]);
    header
}

/// What shim, GRUB and a kernel leave in a boot log.
pub fn grub_log() -> Vec<u8> {
    let digest = |text: &str| <[u8; 48]>::from(Sha384::digest(text));
    let application = |path: &str| {
        let name: Vec<u8> = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        let node = [&[4, 4][..], &u16::try_from(name.len() + 4).unwrap().to_le_bytes(), &name].concat();
        let len = (node.len() as u64 + 4).to_le_bytes();
        [&[0; 24][..], &len, &node, &[0x7f, 0xff, 4, 0]].concat()
    };
    [
        log_header(),
        event(1, 0x8000_000b, digest("TDX table"), b"\x09TdxTable\0"),
        event(1, 4, digest("separator"), &[0; 4]),
        event(2, 0x8000_0003, digest("shim"), &application("\\EFI\\alinux\\shimx64.efi")),
        event(2, 0x8000_0003, digest("grub"), &application("\\EFI\\alinux\\grubx64.efi")),
        event(3, 0x0d, digest("command line"), b"grub_kernel_cmdline /vmlinuz root=/dev/vda1 ro\0"),
        event(3, 0x0d, digest("kernel"), b"grub_linuxefi Kernel"),
        event(3, 0x0d, digest("initrd"), b"grub_linuxefi Initrd"),
    ]
    .concat()
}

/// One of the agents' events, in binary form.
pub fn agents_event(text: &str) -> Vec<u8> {
    let data =
        [b"LEAA".as_slice(), &u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat();
    let digest = Sha384::digest(&data).into();
    event(4, 6, digest, &data)
}

/// The registers after a log made of [`log_header`] and [`event`]s.
pub fn replay(log: &[u8]) -> [[u8; 48]; 4] {
    let mut rtmrs = [[0; 48]; 4];
    let mut at = log_header().len();
    while at < log.len() {
        let register = usize::from(log[at]);
        let digest = &log[at + 14..at + 62];
        let data_len = u32::from_le_bytes(log[at + 62..at + 66].try_into().unwrap()) as usize;
        rtmrs[register - 1] = Sha384::digest([&rtmrs[register - 1], digest].concat()).into();
        at += 66 + data_len;
    }
    rtmrs
}
