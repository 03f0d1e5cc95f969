//! Programs of the system that are asked for what they know: found at fixed places, bounded in time and output.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Where programs are, below the root: no search path decides what root runs.
const DIRECTORIES: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// Standard output and standard error, as they came; what is not UTF-8 is replaced.
    pub text: String,
    /// There was more than asked for, and the rest was not read.
    pub cut: bool,
    /// It ended with status 0.
    pub success: bool,
}

/// The program `name` below `root`, where there is one.
pub fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let places = DIRECTORIES.iter().map(|directory| root.join(directory).join(name));
    places.into_iter().find(|path| path.is_file())
}

/// Run `program` with nothing in its environment but a plain locale, for at most `limit`, and read at most `bytes` of what it
/// says. Blocking.
///
/// # Errors
/// What the system says; `TimedOut` when it had to be killed.
pub fn run(program: &Path, arguments: &[&str], limit: Duration, bytes: usize) -> io::Result<Said> {
    let deadline = Instant::now() + limit;
    let (mut ours, theirs) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.stdout(theirs.try_clone()?).stderr(theirs);
    // With whatever it starts.
    let mut child = command.process_group(0).spawn()?;
    // It holds the ends that are written to.
    drop(command);
    let read = read_until(&mut ours, deadline, bytes);
    if !matches!(read, Ok((_, false))) {
        let group = Pid::from_raw(child.id().try_into().unwrap_or_default());
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait()?;
    let (output, cut) = read?;
    Ok(Said { text: String::from_utf8_lossy(&output).into_owned(), cut, success: status.success() })
}

/// Everything up to `bytes`, and whether there was more.
///
/// # Errors
/// What the system says; `TimedOut` when `pipe` is still open at the `deadline`.
pub fn read_until(
    pipe: &mut (impl Read + AsFd),
    deadline: Instant,
    bytes: usize,
) -> io::Result<(Vec<u8>, bool)> {
    let (mut output, mut buffer) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = pipe.read(&mut buffer)?;
        let room = bytes.saturating_sub(output.len());
        output.extend(buffer.iter().take(count.min(room)));
        match count {
            0 => return Ok((output, false)),
            _ if count > room => return Ok((output, true)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: &str = "/bin/sh";

    fn shell(script: &str, limit: Duration, bytes: usize) -> io::Result<Said> {
        run(Path::new(SHELL), &["-c", script], limit, bytes)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn both_outputs_and_the_status_are_told_and_the_environment_is_not_handed_on() {
        let said = shell("echo out; echo err >&2; echo \"home=$HOME\"; exit 3", LONG, 100).unwrap();
        assert_eq!((said.text.as_str(), said.cut, said.success), ("out\nerr\nhome=\n", false, false));
        assert!(shell("true", LONG, 1).unwrap().success);
    }

    #[test]
    fn program_that_says_too_much_or_nothing_is_ended() {
        let said = shell("while :; do echo x; done", LONG, 5).unwrap();
        assert_eq!((said.text.as_str(), said.cut), ("x\nx\nx", true));
        let begun = Instant::now();
        let error = shell("sleep 60", Duration::from_millis(50), 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn program_is_found_below_the_root_alone() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path(), "sh"), None);
        assert!(find(Path::new("/"), "sh").is_some());
        std::fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        std::fs::write(root.path().join("usr/sbin/sh"), "").unwrap();
        assert_eq!(find(root.path(), "sh"), Some(root.path().join("usr/sbin/sh")));
    }
}
