// Package boot computes what a TDX guest has in MRTD and RTMR0 to RTMR2 after
// QEMU booted it with the OVMF firmware, a Linux kernel, an initrd and a
// command line (docs/osimage.md#registers).
//
// It reads firmware and kernels that nobody vouches for, within bounds. What it
// does not know for certain how to measure, it refuses.
package boot

import (
	"crypto/sha512"
	"encoding/binary"
	"unicode/utf16"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// emptyVariables is the SHA-384 of the configuration volume of a 4 MiB OVMF as
// it is built: 0x84000 bytes that hold no variable
// (docs/osimage.md#configuration-volume).
const emptyVariables = "\x34\x4b\xc5\x1c\x98\x0b\xa6\x21\xaa\xa0\x0d\xa3\xed\x74\x36\xf7\xd6\xe5\x49\x19\x7d\xfe\x69\x95\x15\xdf\xa2\xc6\x58\x3d\x95\xe6\x41\x2a\xf2\x1c\x09\x7d\x47\x31\x55\x87\x5f\xfd\x56\x1d\x67\x90"

// bootOption is the variable Boot0000, which starts the firmware's own user
// interface: attributes, length of the path, name, and the path, which is a
// firmware volume, a file in it, and an end.
const bootOption = "\x09\x01\x00\x00\x2c\x00" + "U\x00i\x00A\x00p\x00p\x00\x00\x00" +
	"\x04\x07\x14\x00\xc9\xbd\xb8\x7c\xeb\xf8\x34\x4f\xaa\xea\x3e\xe4\xaf\x65\x16\xa1" +
	"\x04\x06\x14\x00\x21\xaa\x2c\x46\x14\x76\x03\x45\x83\x6e\x8a\xb6\xf4\x66\x23\x31" +
	"\x7f\xff\x04\x00"

// The vendors of the Secure Boot variables, as they are laid out in memory.
const (
	globalVariable = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	imageSecurity  = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
)

// CFV returns the digest of the configuration volume of the firmware that
// dstack images have shipped before edk2-stable202505.
func CFV() attest.Measurement { return attest.Measurement([]byte(emptyVariables)) }

// RTMR0 returns what the firmware and the machine leave in RTMR0: hob is the
// digest of the hand-off block, cfv that of the configuration volume, acpi those
// of the tables QEMU made. Secure Boot is off and no key is enrolled.
func RTMR0(hob, cfv attest.Measurement, acpi ACPI) attest.Measurement {
	return replay(
		hob, cfv,
		emptyVariable(globalVariable, "SecureBoot"), emptyVariable(globalVariable, "PK"),
		emptyVariable(globalVariable, "KEK"),
		emptyVariable(imageSecurity, "db"), emptyVariable(imageSecurity, "dbx"),
		separator(),
		acpi.Loader, acpi.RSDP, acpi.Tables,
		sha512.Sum384([]byte{0, 0}), // BootOrder: Boot0000 alone
		sha512.Sum384([]byte(bootOption)),
	)
}

// RTMR1 returns what the start of the kernel leaves in RTMR1; kernel is what
// [Kernel.Digest] returns.
func RTMR1(kernel attest.Measurement) attest.Measurement {
	return replay(
		kernel,
		sha512.Sum384([]byte("Calling EFI Application from Boot Option")),
		separator(),
		sha512.Sum384([]byte("Exit Boot Services Invocation")),
		sha512.Sum384([]byte("Exit Boot Services Returned with Success")),
	)
}

// RTMR2 returns what the kernel's EFI stub leaves in RTMR2: cmdline is what
// [CommandLine] returns, initrd the SHA-384 of the initrd.
func RTMR2(cmdline, initrd attest.Measurement) attest.Measurement {
	return replay(cmdline, initrd)
}

// CommandLine returns the digest of a kernel command line, to which the loader
// adds " initrd=initrd": UTF-16, little-endian, with its final zero.
func CommandLine(cmdline string) attest.Measurement {
	return sha512.Sum384(append(utf16LE(cmdline+" initrd=initrd"), 0, 0))
}

func replay(digests ...attest.Measurement) attest.Measurement {
	var register attest.Measurement
	for _, d := range digests {
		register = eventlog.Extend(register, d)
	}
	return register
}

func separator() attest.Measurement { return sha512.Sum384([]byte{0, 0, 0, 0}) }

// emptyVariable is the digest of an EFI variable that is not set: vendor, number
// of characters of its name, size of its data, name.
func emptyVariable(vendor, name string) attest.Measurement {
	b := binary.LittleEndian.AppendUint64([]byte(vendor), uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, 0)
	return sha512.Sum384(append(b, utf16LE(name)...))
}

func utf16LE(s string) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}
