//! Packets between daemon and helper, and the data that travels beside them.
//!
//! Holds: no input panics; what is taken as a request, a reply or data is written back as a packet that says the same.
#![no_main]

use cai::helper::protocol::{EventLogs, GpuReports, Reply, Request};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|packet: &[u8]| {
    if let Ok(request) = Request::from_packet(packet) {
        assert_eq!(Request::from_packet(&request.to_packet().unwrap()).unwrap(), request);
    }
    round_trip::<Reply>(packet);
    round_trip::<EventLogs>(packet);
    round_trip::<GpuReports>(packet);
});

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(packet: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(packet) {
        let written = serde_json::to_vec(&read).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), read);
    }
}
