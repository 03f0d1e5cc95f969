//! The gocryptfs v2 format: conf, names, content, directory; reader and writer; pure CPU.
