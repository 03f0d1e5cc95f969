# The root shell of a virtual machine (tests/system/vm.rs), at its end of a virtio-serial port. It says "up" and the boot's
# identifier, then answers scripts. In: length, newline, script. Out: exit status, lengths of both outputs, newline, outputs.
import subprocess
import sys

limit, *environment = sys.argv[1:]
port = open("/dev/virtio-ports/cai.shell", "r+b", buffering=0)


def say(message):
    while message:
        message = message[port.write(message):]


def hear(length):
    message = b""
    while len(message) < length:
        part = port.read(length - len(message))
        if not part:
            # Nobody is at the other end: whoever comes next is told that this is a new shell.
            sys.exit(0)
        message += part
    return message


def line():
    message = b""
    while not message.endswith(b"\n"):
        message += hear(1)
    return message


say(b"up " + open("/proc/sys/kernel/random/boot_id", "rb").read())
while True:
    script = hear(int(line()))
    command = ["env", "-i", *environment, "timeout", limit, "sh", "-euc", script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    say(b"%d %d %d\n" % (done.returncode, len(done.stdout), len(done.stderr)))
    say(done.stdout + done.stderr)
