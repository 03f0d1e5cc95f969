//! What a Quote Generation Service answers over its socket, and the file that names its port.
//!
//! Holds: no input panics; no more is read than the longest message; the quote taken is the end of the message, and
//! together with what stands before it is all of the message; a port is a number that stands in the file.
#![no_main]

use std::io::{self, Read, Write};

use cai::attest::qgs::{MESSAGE_LIMIT, exchange, port, response};
use libfuzzer_sys::fuzz_target;

/// Header, and the lengths of key id and quote.
const FIXED: usize = 16 + 8;

/// The host's side of the socket.
struct Host<'a> {
    says: &'a [u8],
    asked: Vec<u8>,
    taken: usize,
}

impl Read for Host<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.says.read(buffer)?;
        self.taken += read;
        Ok(read)
    }
}

impl Write for Host<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.asked.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|says: &[u8]| {
    let mut host = Host { says, asked: Vec::new(), taken: 0 };
    let streamed = exchange(&mut host, &[0x5a; 1024]);
    assert!(host.taken <= 4 + MESSAGE_LIMIT);
    assert_eq!(host.asked.len(), 4 + FIXED + 1024);
    if let Ok(quote) = &streamed {
        assert!(says[..host.taken].ends_with(quote));
    }
    if let Ok(quote) = response(says) {
        assert!(!quote.is_empty() && says.ends_with(quote));
        let id_len = u32::from_le_bytes(says[16..20].try_into().unwrap());
        assert_eq!(FIXED + usize::try_from(id_len).unwrap() + quote.len(), says.len());
    }
    if let Ok(text) = std::str::from_utf8(says)
        && let Some(port) = port(text)
    {
        let digits = text.chars().filter(char::is_ascii_digit).collect::<String>();
        assert!(digits.contains(&port.to_string()), "{port}");
    }
});
