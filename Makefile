# The two commands of the README are `make demo` and `make test`. Both set up what they need.

.PHONY: help demo test rpm test-system test-vm bench

help:
	@echo "make demo   set up, build, and run the whole story on stand-ins for Trustee and OSS"
	@echo "make test   set up and run every test"
	@echo "make rpm    build the RPM and its source RPM into target/rpm, and check them"
	@echo "make test-system  the package's life under the systemd of Debian 11 (247) and 13 (257); make test has 12's (252)"
	@echo "make test-vm  the same in an emulated machine with Linux 5.10 (Debian 11): memory limits, swap, modules, cores, reboot"
	@echo "make bench  measure what the README claims, against gocryptfs in the same run"

demo:
	@scripts/setup.sh demo
	cargo build --release --features sandbox
	@scripts/demo.sh --bin target/release

test:
	@scripts/setup.sh test
	@scripts/test.sh

rpm:
	@scripts/setup.sh rpm
	packaging/rpm.sh source target/rpm
	packaging/check-rpm.sh target/rpm/cai-*.x86_64.rpm

# The released package where it can run; this build's where the target's OpenSSL is not.
test-system: rpm
	@scripts/setup.sh test
	CAI_TEST_REQUIRE=nspawn CAI_TEST_ROOTFS=$$(packaging/rootfs.sh bullseye) CAI_TEST_RPM=$$(ls $$PWD/target/rpm/cai-*.x86_64.rpm) \
		cargo test --features sandbox --test system -- --nocapture
	CAI_TEST_REQUIRE=nspawn CAI_TEST_ROOTFS=$$(packaging/rootfs.sh trixie) cargo test --features sandbox --test system -- --nocapture

# Nobody's machine is faster for being emulated: every wait is ten times as long.
test-vm: rpm
	@scripts/setup.sh vm
	CAI_TEST_MACHINE=vm CAI_TEST_REQUIRE=vm CAI_TEST_PATIENCE=10 CAI_TEST_ROOTFS=$$(packaging/rootfs.sh bullseye-vm) \
		CAI_TEST_RPM=$$(ls $$PWD/target/rpm/cai-*.x86_64.rpm) cargo test --features sandbox --test system -- --nocapture

bench:
	@scripts/setup.sh bench
	cargo build --release --features sandbox --bins --example empty-fs
	@python3 -B benches/run.py --bin target/release
	@python3 -B benches/reads.py --bin target/release
	@python3 -B benches/encrypt.py --bin target/release
	@scripts/setup.sh test
	@python3 -B benches/upload.py --bin target/release
	@python3 -B benches/cold.py --bin target/release
	@python3 -B benches/gateway.py --bin target/release
	@python3 -B benches/peers.py --bin target/release
	@.tools/venv/bin/python -B benches/peers_model.py --images docs/images
