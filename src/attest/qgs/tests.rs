use std::io::Cursor as Bytes;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;

/// What a service answers.
fn answer(kind: u32, code: u32, id: &[u8], quote: &[u8]) -> Vec<u8> {
    let len = u32::try_from(24 + id.len() + quote.len()).unwrap();
    let mut message = [1u16, 1].map(u16::to_le_bytes).concat();
    let lengths = [id.len(), quote.len()].map(|len| u32::try_from(len).unwrap());
    message.extend([kind, len, code, lengths[0], lengths[1]].map(u32::to_le_bytes).concat());
    message.extend(id);
    message.extend(quote);
    message
}

/// A line whose other side has answered already, and that keeps what was asked.
struct Script {
    asked: Vec<u8>,
    answered: Bytes<Vec<u8>>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.answered.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.asked.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn script(len: u32, message: &[u8]) -> Script {
    Script { asked: Vec::new(), answered: Bytes::new([&len.to_be_bytes()[..], message].concat()) }
}

fn refusal(message: &[u8]) -> &'static str {
    match response(message) {
        Err(QgsError::Answer { what }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn request_has_the_bytes_of_intels_message() {
    let mut report = [7; TD_REPORT_LEN];
    report[0] = 0x81;
    let message = request(&report);
    // 1048 = 0x418 in big-endian, then version 1.1, type 0, size, error, report's and list's lengths in little-endian.
    assert_eq!(hex::encode(&message[..28]), "00000418010001000000000018040000000000000004000000000000");
    assert_eq!(message[28..], report);
}

#[test]
fn exchange_asks_once_and_gives_the_quote() {
    let message = answer(1, 0, &[9; 16], b"the quote");
    let mut line = script(u32::try_from(message.len()).unwrap(), &message);
    assert_eq!(exchange(&mut line, &[7; TD_REPORT_LEN]).unwrap(), b"the quote");
    assert_eq!(line.asked, request(&[7; TD_REPORT_LEN]));
}

#[test]
fn exchange_does_not_make_room_for_what_a_length_claims() {
    for len in [u32::try_from(MESSAGE_LIMIT).unwrap() + 1, u32::MAX] {
        let error = exchange(&mut script(len, b""), &[0; TD_REPORT_LEN]).unwrap_err();
        assert!(matches!(error, QgsError::Answer { what: "it is too long" }), "{error:?}");
    }
    let error = exchange(&mut script(30, b"short"), &[0; TD_REPORT_LEN]).unwrap_err();
    assert!(
        matches!(&error, QgsError::Line(source) if source.kind() == io::ErrorKind::UnexpectedEof),
        "{error:?}"
    );
}

#[test]
fn response_that_is_none_is_refused_with_what_is_wrong() {
    let good = answer(1, 0, &[9; 16], b"quote");
    assert_eq!(response(&good).unwrap(), b"quote");
    for end in 0..good.len() {
        let expected = if end < 16 { "it is cut" } else { "its length is not what it says" };
        assert_eq!(refusal(&good[..end]), expected, "cut at {end}");
    }
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        refusal(&bytes)
    };
    assert_eq!(change(0, 2), "it has another version");
    assert_eq!(change(4, 0), "it answers something else");
    assert_eq!(change(16, 15), "it goes on after its quote");
    assert_eq!(change(19, 1), "it is cut");
    assert_eq!(change(23, 1), "it is cut");
    assert_eq!(refusal(&answer(1, 0, b"", b"")), "its quote is empty");
}

#[test]
fn response_with_an_error_code_is_the_services_refusal_whatever_follows() {
    let error = response(&answer(1, 0x1_2002, b"", b"quote")).unwrap_err();
    assert!(matches!(error, QgsError::Refused { code: 0x1_2002 }));
    assert_eq!(error.to_string(), "the host's quote generation service refused with error 0x12002");
}

#[test]
fn port_is_taken_from_its_line_alone() {
    assert_eq!(port("# port = 1\nport=4050\n"), Some(4050));
    assert_eq!(port("  port =  4050 # the host's\nport=1"), Some(4050));
    for text in ["", "#port=4050", "ports=4050", "port=", "port=many", "port=-1", "port"] {
        assert_eq!(port(text), None, "{text:?}");
    }
}

#[test]
fn line_that_says_nothing_ends_at_its_deadline() {
    let (ours, _silent) = UnixStream::pair().unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    let mut line = Line { socket: ours.into(), deadline };
    let error = exchange(&mut line, &[0; TD_REPORT_LEN]).unwrap_err();
    assert!(
        matches!(&error, QgsError::Line(source) if source.kind() == io::ErrorKind::TimedOut),
        "{error:?}"
    );
    assert!(Instant::now() >= deadline);
    assert_eq!(line.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
}

proptest! {
    #[test]
    fn any_bytes_are_a_response_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), framed: bool) {
        let mut bytes = bytes;
        if framed && bytes.len() >= 16 {
            let len = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            bytes[..16].copy_from_slice(&[&[1, 0, 1, 0, 1, 0, 0, 0][..], &len, &[0; 4]].concat());
        }
        if let Ok(quote) = response(&bytes) {
            prop_assert!(!quote.is_empty() && bytes.ends_with(quote));
        }
    }

    #[test]
    fn any_text_has_a_port_or_none(text in "(?s).{0,64}") {
        let _ = port(&text);
    }
}
