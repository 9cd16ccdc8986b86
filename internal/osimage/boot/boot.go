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

// What OVMF before edk2-stable202505 measures in every guest. The first is the
// firmware's volume of variables as it is built, the second the variable
// Boot0000, which starts the firmware's own user interface.
const (
	builtCFV      = "\x34\x4b\xc5\x1c\x98\x0b\xa6\x21\xaa\xa0\x0d\xa3\xed\x74\x36\xf7\xd6\xe5\x49\x19\x7d\xfe\x69\x95\x15\xdf\xa2\xc6\x58\x3d\x95\xe6\x41\x2a\xf2\x1c\x09\x7d\x47\x31\x55\x87\x5f\xfd\x56\x1d\x67\x90"
	builtBoot0000 = "\x23\xad\xa0\x7f\x52\x61\xf1\x2f\x34\xa0\xbd\x8e\x46\x76\x09\x62\xd6\xb4\xd5\x76\xa4\x16\xf1\xfe\xa1\xc6\x4b\xc6\x56\xb1\xd2\x8e\xac\xf7\x04\x7a\xe6\xe9\x67\xc5\x8f\xd2\xa9\x8b\xfa\x74\xc2\x98"
)

// The vendors of the Secure Boot variables, as they are laid out in memory.
const (
	globalVariable = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	imageSecurity  = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
)

// CFV returns the digest of the configuration volume of the firmware that
// dstack images have shipped before edk2-stable202505.
func CFV() attest.Measurement { return attest.Measurement([]byte(builtCFV)) }

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
		attest.Measurement([]byte(builtBoot0000)),
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
