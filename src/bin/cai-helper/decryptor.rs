//! An adapter that decrypts in the daemon's place: looked at, given its ciphertext and a mount of its own, started.
//!
//! The adapter mounts nothing itself: it gets a `/dev/fuse` that is mounted already, as `/dev/fd/4`, which libfuse 3 and go-fuse
//! take for a mount point. So it needs no privilege at all, and no set-user-id program; its mount is read-only and ours from
//! the first moment, hangs nowhere until it has answered ([`Decryptor::answering`]), and is taken away by us however the adapter
//! ends. Tried with the unmodified gocryptfs 2.3: CAP_SYS_ADMIN in a namespace of its own would also do, and is more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cai::error::{Fault, chain};
use cai::helper::channel;
use cai::host::User;
use cai::host::directory::open_or_create;
use cai::sam::USER;
use cai::sam::adapter::{self, Adapter};
use cai::sam::keeper::{FOLLOWING, Order};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use nix::unistd::fchown;
use rustix::fs::{Mode, OFlags, open};

use crate::backing::Slot;
use crate::fuse::{self, Server};
use crate::mount_point::{MountPoint, link};
use crate::session::Refusal;
use crate::terms::{AdapterTerms, Terms};

/// Directory of the ciphertext's mount, below the root: the adapter's group may pass, and nobody else.
const DIRECTORY: &str = "run/cai/decryptor";

/// The mount in it.
const CIPHERTEXT: &str = "ciphertext";

/// Where `cai-decryptor.socket` listens.
const SOCKET: &str = "/run/cai/decryptor.sock";

/// How long a mount may take to answer once its adapter says that it is ready.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How a keeper is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    /// As `cai-decryptor@.service`, whose sandbox is systemd's.
    Unit,
    /// As a child that confines itself.
    Child,
}

/// The adapter of one connection.
pub(crate) struct Decryptor {
    launch: Launch,
    ciphertext: MountPoint,
    /// The adapter's mount, until it is at its point.
    plaintext: Option<OwnedFd>,
}

impl Decryptor {
    pub(crate) fn new(launch: Launch) -> Self {
        Decryptor { launch, ciphertext: MountPoint::default(), plaintext: None }
    }

    /// Whether there is somebody to start, and somebody to be.
    pub(crate) fn check(&self, terms: &Terms) -> Result<String, Refusal> {
        let adapter = find(adapter_terms(terms)?)?;
        user()?;
        Ok(format!("{} has SHA-256 {}", adapter.path.display(), adapter.sha256))
    }

    /// Mount the ciphertext where only the adapter's user can reach it.
    pub(crate) fn ciphertext(&mut self, terms: &Terms) -> Result<(String, OwnedFd), Refusal> {
        let path = adapter_terms(terms)?.root.join(DIRECTORY);
        let failed = |what: String| Refusal::new("sam.directory", what, "see what is at that path");
        let directory = open_or_create(&path, &[]).map_err(|error| failed(chain(&error)))?;
        let link = link(&directory.descriptor);
        chown(&link, Some(0), Some(user()?.gid.as_raw()))
            .and_then(|()| std::fs::set_permissions(&link, std::fs::Permissions::from_mode(0o710)))
            .map_err(|error| failed(format!("{}: {error}", path.display())))?;
        self.ciphertext.mount(&terms.for_ciphertext(path.join(CIPHERTEXT)))
    }

    /// Start the adapter, with a mount of its own that hangs nowhere: words, and the line to its keeper.
    pub(crate) fn start(&mut self, terms: &Terms, key: &OwnedFd) -> Result<(String, OwnedFd), Refusal> {
        let adapter_terms = adapter_terms(terms)?;
        let adapter = find(adapter_terms)?;
        let user = user()?;
        let failed = |what: &str, error: io::Error| start_failed(&format!("{what}: {error}"));
        if fstat(key).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits()) {
            return Err(start_failed("the key must come in a pipe"));
        }
        // Some programs open /dev/fd/3 anew.
        fchown(key, Some(user.uid), Some(user.gid))
            .map_err(|error| failed("giving the key away", error.into()))?;
        let (device, mount) = mount_for(user).map_err(|error| failed("making a FUSE mount", error))?;
        let line = match self.launch {
            Launch::Unit => reach_unit(),
            Launch::Child => start_child(),
        };
        let line = line.map_err(|error| failed("starting the adapter's keeper", error))?;
        let cipher_dir = adapter_terms.root.join(DIRECTORY).join(CIPHERTEXT);
        let order = Order { key_id: adapter_terms.key_id.clone(), cipher_dir };
        let order = serde_json::to_vec(&order).map_err(|error| failed("an order", error.into()))?;
        let [name_device, name_adapter] = FOLLOWING;
        for (message, descriptor) in
            [(order.as_slice(), key), (name_device, &device), (name_adapter, &adapter.file)]
        {
            channel::send(line.as_fd(), message, Some(descriptor.as_fd()))
                .map_err(|error| failed("ordering the adapter's start", error))?;
        }
        self.plaintext = Some(mount);
        Ok((format!("started {} with SHA-256 {}", adapter.path.display(), adapter.sha256), line))
    }

    /// The adapter's mount, once it answers.
    pub(crate) fn answering(&mut self) -> Result<OwnedFd, Refusal> {
        let refused = |why: String| {
            let text = format!("the adapter says that it is ready, and its mount does not answer: {why}");
            Refusal::new(
                "sam.no-mount",
                text,
                "it must serve what --mount-point names before it prints READY: cai-decryptor(7)",
            )
        };
        let mount = self.plaintext.take().ok_or_else(|| refused("no adapter was started".into()))?;
        let (sender, receiver) = mpsc::channel();
        let asked = mount.try_clone().map_err(|error| refused(error.to_string()))?;
        // It may wait until the adapter is gone, and ends then.
        std::thread::spawn(move || sender.send(look(&asked)));
        match receiver.recv_timeout(ANSWER_LIMIT) {
            Ok(Ok(())) => Ok(mount),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused(format!("not within {} s", ANSWER_LIMIT.as_secs()))),
        }
    }

    /// The device of the ciphertext's mount, while the daemon lives.
    pub(crate) fn backing(&self) -> &Slot {
        self.ciphertext.backing()
    }

    /// Take away what is mounted for the adapter.
    pub(crate) fn detach(&mut self) -> Result<String, Refusal> {
        self.plaintext = None;
        self.ciphertext.detach()
    }
}

/// See a FUSE mount answer what the kernel never answers for it, and that it is a directory with something in it.
fn look(mount: &OwnedFd) -> io::Result<()> {
    let found = fstatfs(mount)?.filesystem_type();
    if found != FUSE_SUPER_MAGIC {
        return Err(io::Error::other("it is no FUSE mount"));
    }
    match std::fs::read_dir(link(mount))?.next() {
        Some(first) => first.map(drop),
        None => Err(io::Error::other("there is nothing in it")),
    }
}

fn adapter_terms(terms: &Terms) -> Result<&AdapterTerms, Refusal> {
    terms.adapter.as_ref().ok_or_else(|| {
        let text = "no adapter is configured: MODEL_ENCRYPTION_METHOD is not sam";
        Refusal::new("helper.refused", text, "cai and cai-helper must read one configuration")
    })
}

fn find(terms: &AdapterTerms) -> Result<Adapter, Refusal> {
    adapter::open_below(&terms.root, terms.sha256)
        .map_err(|error| Refusal::new(error.code(), chain(&error), error.hint()))
}

fn user() -> Result<User, Refusal> {
    let found = User::find(USER).ok().flatten();
    found.filter(|user| !user.uid.is_root()).ok_or_else(|| {
        let hint = "make it: systemd-sysusers, or useradd --system --no-create-home cai-decryptor";
        Refusal::new("sam.user", format!("user {USER} does not exist"), hint)
    })
}

fn start_failed(what: &str) -> Refusal {
    Refusal::new("sam.start", what, "see the journal for cai-helper and cai-decryptor")
}

/// `/dev/fuse`, mounted read-only for `user` to serve to all, and the mount, which hangs nowhere.
fn mount_for(user: User) -> io::Result<(OwnedFd, OwnedFd)> {
    let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mount = fuse::make(&device, &Server { user, for_others: true, kernel_checks: true })?;
    Ok((device, mount))
}

/// A new instance of `cai-decryptor@.service`.
fn reach_unit() -> io::Result<OwnedFd> {
    let line = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(line.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
    Ok(line)
}

/// A keeper that is this process's child. It ends with its line and is reaped when this process has ended.
fn start_child() -> io::Result<OwnedFd> {
    let (ours, theirs) = channel::pair()?;
    Command::new("/proc/self/exe")
        .arg("keeper")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(ours)
}
