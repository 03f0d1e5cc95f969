# The two commands of the README are `make demo` and `make test`. Both set up what they need.

.PHONY: help demo test bench

help:
	@echo "make demo   set up, build, and run the whole story on stand-ins for Trustee and OSS"
	@echo "make test   set up and run every test"
	@echo "make bench  measure what the README claims, against gocryptfs in the same run"

demo:
	@scripts/setup.sh demo
	cargo build --release --features sandbox
	@scripts/demo.sh --bin target/release

test:
	@scripts/setup.sh test
	@scripts/test.sh

bench:
	@scripts/setup.sh bench
	cargo build --release --features sandbox
	@python3 -B benches/run.py --bin target/release
	@python3 -B benches/reads.py --bin target/release
	@python3 -B benches/encrypt.py --bin target/release
	@scripts/setup.sh test
	@python3 -B benches/upload.py --bin target/release
	@python3 -B benches/cold.py --bin target/release
	@python3 -B benches/gateway.py --bin target/release
