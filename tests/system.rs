//! The package under a real systemd, D-Bus, polkit and rpm: installed, configured, started, asked, killed, rebooted, upgraded,
//! removed. One machine, one story: each step goes on where the one before it ended.
//!
//! By default the package is made of this build's binaries, and the machine is a container over this machine's own root file
//! system. With CAI_TEST_ROOTFS and CAI_TEST_RPM it is another distribution's, and a package that was built before
//! (`make test-system`); with CAI_TEST_MACHINE=vm a virtual machine with a kernel of its own (`make test-vm`).
#![cfg(feature = "sandbox")]

#[path = "system/audit.rs"]
mod audit;
#[path = "system/bus.rs"]
mod bus;
mod common;
#[path = "system/container.rs"]
mod container;
#[path = "system/crash.rs"]
mod crash;
#[path = "system/doctor.rs"]
mod doctor;
#[path = "system/kernel.rs"]
mod kernel;
#[path = "system/machine.rs"]
mod machine;
#[path = "system/package.rs"]
mod package;
#[path = "system/port.rs"]
mod port;
#[path = "system/rotation.rs"]
mod rotation;
#[path = "system/sam.rs"]
mod sam;
#[path = "system/service.rs"]
mod service;
#[path = "system/vm.rs"]
mod vm;
#[path = "system/world.rs"]
mod world;

use std::path::Path;
use std::time::Instant;

use container::Container;
use machine::Machine;
use vm::Vm;

/// Steps by name, so that a failure says where, and slowness shows.
fn step(name: &str, act: impl FnOnce()) {
    let begun = Instant::now();
    println!("{name}");
    act();
    println!("  {:.1} s", begun.elapsed().as_secs_f32());
}

#[test]
fn package_lives_and_dies_under_a_real_systemd() {
    let emulated = std::env::var("CAI_TEST_MACHINE").is_ok_and(|kind| kind == "vm");
    let can_boot = if emulated { vm::can_boot() } else { container::can_boot() };
    if !can_boot || !common::available("cc", world::compiler(), "no C compiler") {
        return;
    }
    let packages = tempfile::tempdir().unwrap();
    let root = std::env::var("CAI_TEST_ROOTFS").unwrap_or_else(|_| "/".to_owned());
    step("packages", || package::build(packages.path()));
    world::build_library(packages.path());
    let binaries = Path::new(env!("CARGO_BIN_EXE_cai-sandbox")).parent().unwrap();
    let begun = Instant::now();
    let mut machine = if emulated {
        Machine::new(Vm::boot(Path::new(&root), binaries, packages.path()))
    } else {
        Machine::new(Container::boot(Path::new(&root), binaries, packages.path()))
    };
    println!("boot\n  {:.1} s", begun.elapsed().as_secs_f32());
    let c = &machine;

    step("install", || package::install(c));
    step("world", || world::set_up(c));
    step("units are sound", || service::units_are_sound(c));
    step("start", || service::start(c));
    step("the daemon has no privilege", || service::daemon_has_no_privilege(c));
    step("who may reach the helper", || service::helper_is_for_the_daemon_alone(c));
    step("doctor", || doctor::tells_of_a_serving_machine(c));
    step("report", || doctor::reports_without_secrets(c));
    step("bus", || bus::answers_everybody(c));
    step("bus: own", || bus::belongs_to_the_daemon(c));
    step("polkit", || bus::polkit_decides(c));
    step("another mount point, and who reads", || service::consumer_reads(c));
    step("rotation: who may", || rotation::of_the_authorised_alone(c));
    step("rotation under load", || rotation::under_load(c));
    step("rotation by the timer", || rotation::by_the_timer(c));
    step("reload", || rotation::reload(c));
    step("audit", || audit::documented_queries_answer(c));
    step("crash", || crash::killed_daemon_is_back(c));
    step("full disk", || crash::full_disk_costs_speed_alone(c));
    step("hang", || crash::hung_daemon_is_replaced(c));
    step("killed helper", || crash::mount_of_a_killed_helper_is_cleared_away(c));
    step("a model behind an adapter", || sam::adapter_is_confined_and_leaves_nothing(c));
    step("service port", || port::gate_stays(c));
    if emulated {
        step("kernel: on demand, with read-ahead", || kernel::on_demand(c));
        step("kernel: modules", || kernel::modules(c));
        step("kernel: no core", || kernel::no_core(c));
        step("kernel: swap", || kernel::swap(c));
        step("kernel: memory limits", || kernel::memory_limits(c));
    } else {
        println!(
            "kernel: left out: a container has this machine's kernel, and may have no cgroup2 with memory"
        );
    }
    step("stop", || service::stop(c));
    service::prepare_for_boot(c);
    step("reboot", || {
        machine.reboot();
        service::boots_before_the_trustee(&machine);
    });
    let c = &machine;
    step("upgrade and downgrade", || package::upgrade(c));
    step("remove", || package::remove(c));
}
