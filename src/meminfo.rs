//! How much memory the machine has, from proc(5), `meminfo`.

/// The file.
pub const PATH: &str = "/proc/meminfo";

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`: what could be had without swapping, caches that would be dropped included.
    pub available: u64,
}

impl MemInfo {
    /// As the kernel says now.
    ///
    /// # Errors
    /// The file cannot be read; `InvalidData` when it has not both lines in the form `N kB`.
    pub fn read() -> std::io::Result<Self> {
        let table = std::fs::read_to_string(PATH)?;
        Self::parse(&table).ok_or_else(|| {
            let what = "it has no MemTotal or MemAvailable of the form `N kB`";
            std::io::Error::new(std::io::ErrorKind::InvalidData, what)
        })
    }

    /// Lines such as `MemAvailable:   15791888 kB`.
    fn parse(table: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let value = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(MemInfo { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes_and_other_tables_are_none() {
        let table = "MemTotal:       24689744 kB\nMemFree:  1 kB\nMemAvailable:   12 kB\n";
        let memory = MemInfo::parse(table).unwrap();
        assert_eq!((memory.total, memory.available), (24_689_744 << 10, 12 << 10));
        for table in ["", "MemTotal: 1 kB\n", "MemTotal: 1\nMemAvailable: 1 kB\n", &table.replace("12", "-1")]
        {
            assert!(MemInfo::parse(table).is_none(), "{table}");
        }
    }
}
