//! The host's quote generation service, on a Unix socket in place of vsock.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::bytes::{quote_v4, read_td_report};
use super::{QgsFault, Shared};

/// The service, until it is dropped.
pub struct Service {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub fn start(socket: &Path, machine: Shared) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            for line in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is no concern of the service.
                let _ = answer(line.unwrap(), &machine);
            }
        };
        let thread = std::thread::Builder::new().name("qgs".into()).spawn(serve).unwrap();
        Service { socket: socket.to_path_buf(), stop, thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the QGS stand-in panicked");
    }
}

fn answer(mut line: UnixStream, machine: &Shared) -> io::Result<()> {
    let mut len = [0; 4];
    line.read_exact(&mut len)?;
    assert_eq!(u32::from_be_bytes(len), 1048);
    let mut request = [0; 1048];
    line.read_exact(&mut request)?;
    let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    // Version 1.1; type, size, error, length of the report, length of the id list.
    assert_eq!([0, 4, 8, 12, 16, 20].map(number), [0x0001_0001, 0, 1048, 0, 1024, 0]);
    let (mut report_data, measured) = read_td_report(&request[24..]);
    let fault = {
        let mut machine = machine.lock().unwrap();
        machine.qgs_requests += 1;
        machine.qgs_fault.clone()
    };
    let mut code = 0;
    match fault {
        Some(QgsFault::Refuse(error)) => code = error,
        Some(QgsFault::OtherReportData) => report_data[0] ^= 1,
        _ => {}
    }
    let message = message(code, &quote_v4(&report_data, &measured));
    match fault {
        Some(QgsFault::Oversize) => line.write_all(&u32::MAX.to_be_bytes()),
        Some(QgsFault::Cut) => line.write_all(&message[..message.len() / 2]),
        Some(QgsFault::Dribble) => message.chunks(97).try_for_each(|piece| line.write_all(piece)),
        _ => line.write_all(&message),
    }
}

fn message(code: u32, quote: &[u8]) -> Vec<u8> {
    let id = [0x1d; 16];
    let (id_len, quote_len) = if code == 0 { (16, u32::try_from(quote.len()).unwrap()) } else { (0, 0) };
    let len = 24 + id_len + quote_len;
    let mut message = len.to_be_bytes().to_vec();
    message.extend([1, 0, 1, 0]);
    for number in [1, len, code, id_len, quote_len] {
        message.extend(number.to_le_bytes());
    }
    if code == 0 {
        message.extend(id);
        message.extend(quote);
    }
    message
}
