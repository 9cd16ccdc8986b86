package boot

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"teekms/internal/attest"
)

// MaxKernelSize bounds a kernel in bytes; one of a distribution has 15 MB.
const MaxKernelSize = 64 << 20

// acpiReserve is what QEMU keeps free for ACPI tables at the end of memory.
const acpiReserve = 0x28000

// Kernel is a bzImage: a Linux kernel behind a boot header, which is a PE
// executable as well.
type Kernel struct{ image []byte }

// ParseKernel reads a bzImage of the boot protocol 2.12 or later, whose initrd
// may be anywhere in memory: every 64-bit kernel of the last ten years. It keeps
// image.
func ParseKernel(image []byte) (*Kernel, error) {
	const high, above4G, fiveLevel = 1, 1 << 1, 1 << 6
	switch {
	case len(image) < 4096 || len(image) > MaxKernelSize || string(image[0x202:0x206]) != "HdrS":
		return nil, errors.New("reading kernel: not a bzImage")
	case binary.LittleEndian.Uint16(image[0x206:]) < 0x20c || image[0x211]&high == 0:
		return nil, errors.New("reading kernel: boot protocol too old")
	// QEMU looks at one of these flags, its model in dstack at the other.
	case image[0x236]&(above4G|fiveLevel) != above4G|fiveLevel:
		return nil, errors.New("reading kernel: not a 64-bit kernel that can be loaded anywhere")
	}
	return &Kernel{image}, nil
}

// UsualMemory says whether a guest of that many bytes of memory has its initrd
// where most have it, so that its kernel's digest is the usual one.
func UsualMemory(memory uint64) bool { return memory == lowMemory || memory >= manyMemory }

// Digest returns what the firmware measures of the kernel: the Authenticode
// SHA-384 of the image, into whose boot header QEMU has written where it will
// put the command line and an initrd of that size.
func (k *Kernel) Digest(initrdSize, memory uint64) (attest.Measurement, error) {
	below := min(memory, manyMemory)
	if memory >= manyMemory {
		below = lowMemory
	}
	if initrdSize == 0 || below < acpiReserve+1 || initrdSize >= below-acpiReserve-1 {
		return attest.Measurement{}, fmt.Errorf("initrd of %d bytes in memory of %d bytes", initrdSize, memory)
	}
	const setup, cmdline = 0x10000, 0x20000
	b := slices.Clone(k.image)
	b[0x210] = 0xb0  // loaded by QEMU
	b[0x211] |= 0x80 // with a heap
	binary.LittleEndian.PutUint32(b[0x218:], uint32((below-acpiReserve-1-initrdSize)&^4095))
	binary.LittleEndian.PutUint32(b[0x21c:], uint32(initrdSize))
	binary.LittleEndian.PutUint32(b[0x224:], cmdline-setup-0x200)
	binary.LittleEndian.PutUint32(b[0x228:], cmdline)
	return authenticode(b)
}

// authenticode hashes a PE executable: its headers without checksum and place
// of the signature, its sections in the order of the file, and what follows
// them without the signature. Signers pad an image to eight bytes, firmware does
// not; an image where that would matter is refused.
func authenticode(image []byte) (attest.Measurement, error) {
	pe, err := parsePE(image)
	if err != nil {
		return attest.Measurement{}, fmt.Errorf("reading kernel as PE: %w", err)
	}
	h := sha512.New384()
	h.Write(image[:pe.checksum])
	h.Write(image[pe.checksum+4 : pe.signature])
	h.Write(image[pe.signature+8 : pe.headers])
	hashed := pe.headers
	for _, s := range pe.sections {
		h.Write(image[s.start : s.start+s.size])
		hashed += int(s.size)
	}
	rest := len(image) - hashed - int(pe.signatureSize)
	if rest < 0 {
		return attest.Measurement{}, errors.New("reading kernel as PE: sections and signature larger than the file")
	}
	h.Write(image[hashed : hashed+rest])
	return attest.Measurement(h.Sum(nil)), nil
}

type portableExecutable struct {
	checksum, signature, headers int // offsets
	signatureSize                uint32
	sections                     []memoryRange // in the file, sorted
}

func parsePE(image []byte) (*portableExecutable, error) {
	if len(image)%8 != 0 {
		return nil, errors.New("size is not a multiple of 8")
	}
	at := uint64(binary.LittleEndian.Uint32(image[0x3c:]))
	// 24 bytes of headers, 152 of the optional one up to the signature's place.
	if at > uint64(len(image)) || uint64(len(image))-at < 24+152 || string(image[at:at+4]) != "PE\x00\x00" {
		return nil, errors.New("no PE header")
	}
	coff, optional := image[at+4:], image[at+24:]
	optionalSize := binary.LittleEndian.Uint16(coff[16:])
	if binary.LittleEndian.Uint16(optional) != 0x20b || optionalSize < 152 || binary.LittleEndian.Uint32(optional[108:]) < 5 {
		return nil, errors.New("not a 64-bit executable with a place for a signature")
	}
	pe := &portableExecutable{
		checksum:      int(at) + 24 + 64,
		signature:     int(at) + 24 + 144,
		headers:       int(binary.LittleEndian.Uint32(optional[60:])),
		signatureSize: binary.LittleEndian.Uint32(optional[148:]),
	}
	table, count := int(at)+24+int(optionalSize), int(binary.LittleEndian.Uint16(coff[2:]))
	if count > 96 || table+40*count > pe.headers || pe.headers > len(image) {
		return nil, errors.New("headers of impossible sizes")
	}
	for i := range count {
		entry := image[table+40*i:]
		size := uint64(binary.LittleEndian.Uint32(entry[16:]))
		if size > 0 {
			pe.sections = append(pe.sections, memoryRange{uint64(binary.LittleEndian.Uint32(entry[20:])), size})
		}
	}
	return pe, pe.checkSections(uint64(len(image)))
}

// checkSections refuses holes and overlaps, so that each byte of the file is
// hashed exactly once.
func (pe *portableExecutable) checkSections(size uint64) error {
	slices.SortFunc(pe.sections, func(a, b memoryRange) int { return int(int64(a.start) - int64(b.start)) })
	next := uint64(pe.headers)
	for _, s := range pe.sections {
		if s.start != next || s.size > size-s.start {
			return errors.New("sections do not follow one another")
		}
		next += s.size
	}
	return nil
}
