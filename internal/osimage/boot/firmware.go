package boot

import (
	"cmp"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"teekms/internal/attest"
)

// MaxFirmwareSize bounds a firmware in bytes; OVMF has 4 MiB.
const MaxFirmwareSize = 64 << 20

const (
	maxSections = 64
	// maxPages bounds the work: OVMF adds about a thousand pages.
	maxPages = 1 << 16

	footerGUID   = "\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d"
	metadataGUID = "\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2"

	sectionCFV     = 1
	sectionHOB     = 2
	sectionTempMem = 3

	attributeExtend = 1 // its contents are measured
	attributeAug    = 2 // its pages are added later, by the guest
)

// Firmware is what there is to know of a firmware image for TDX.
type Firmware struct {
	// MRTD are the two values that MRTD can have: old versions of QEMU add all
	// pages of a section before they measure their contents (two passes),
	// others go page by page.
	MRTD struct{ SinglePass, TwoPass attest.Measurement }
	// CFV is the SHA-384 of the configuration volume.
	CFV attest.Measurement
	// Layout tells what the hand-off block will say.
	Layout *Layout
}

// section is an entry of the firmware's table, 32 bytes:
//
//	u32 offset | u32 size in the file | u64 address | u64 size in memory
//	| u32 kind | u32 attributes
type section struct {
	data             []byte // what is measured or loaded
	address, size    uint64
	kind, attributes uint32
}

// ParseFirmware reads the TDX metadata of a firmware image and measures it.
func ParseFirmware(image []byte) (*Firmware, error) {
	if len(image) > MaxFirmwareSize {
		return nil, errors.New("firmware too large")
	}
	sections, err := parseSections(image)
	if err != nil {
		return nil, fmt.Errorf("reading TDX metadata of firmware: %w", err)
	}
	f := &Firmware{Layout: &Layout{}}
	if err := f.describe(sections); err != nil {
		return nil, fmt.Errorf("reading TDX metadata of firmware: %w", err)
	}
	f.MRTD.SinglePass = mrtd(sections, false)
	f.MRTD.TwoPass = mrtd(sections, true)
	return f, nil
}

func (f *Firmware) describe(sections []section) error {
	volumes, blocks := 0, 0
	for _, s := range sections {
		switch s.kind {
		case sectionCFV:
			volumes++
			f.CFV = sha512.Sum384(s.data)
		case sectionHOB, sectionTempMem:
			if s.kind == sectionHOB {
				blocks++
				f.Layout.hob = s.address
			}
			f.Layout.ranges = append(f.Layout.ranges, memoryRange{s.address, s.size})
		default: // The boot volume, or nothing that tells on memory.
		}
	}
	if volumes != 1 || blocks != 1 {
		return fmt.Errorf("%d configuration volumes and %d hand-off blocks, want one of each", volumes, blocks)
	}
	slices.SortFunc(f.Layout.ranges, func(a, b memoryRange) int { return cmp.Compare(a.start, b.start) })
	return f.Layout.check()
}

func parseSections(image []byte) ([]section, error) {
	table, err := sectionTable(image)
	if err != nil {
		return nil, err
	}
	var sections []section
	pages := uint64(0)
	for ; len(table) > 0; table = table[32:] {
		s, err := parseSection(image, table[:32])
		if err != nil {
			return nil, fmt.Errorf("section %d: %w", len(sections), err)
		}
		if pages += s.size / pageSize; pages > maxPages {
			return nil, errors.New("too many pages")
		}
		sections = append(sections, s)
	}
	return sections, nil
}

func parseSection(image, entry []byte) (section, error) {
	offset := uint64(binary.LittleEndian.Uint32(entry))
	inFile := uint64(binary.LittleEndian.Uint32(entry[4:]))
	s := section{
		address:    binary.LittleEndian.Uint64(entry[8:]),
		size:       binary.LittleEndian.Uint64(entry[16:]),
		kind:       binary.LittleEndian.Uint32(entry[24:]),
		attributes: binary.LittleEndian.Uint32(entry[28:]),
	}
	if s.address%pageSize != 0 || s.size%pageSize != 0 || s.address >= maxMemory || s.size > maxPages*pageSize {
		return section{}, errors.New("not whole pages of memory")
	}
	if inFile > s.size || s.attributes&attributeExtend != 0 && inFile != s.size {
		return section{}, errors.New("file and memory sizes do not agree")
	}
	if offset+inFile > uint64(len(image)) {
		return section{}, errors.New("data outside of the firmware")
	}
	s.data = image[offset : offset+inFile]
	return s, nil
}

// sectionTable finds the table of sections. The firmware ends in a table of
// entries "data | u16 size | GUID", to be read from its end, 32 bytes before
// that of the file; the last entry holds the size of all. One of them tells how
// far before the end of the file the metadata are:
//
//	"TDVF" | u32 size | u32 version 1 | u32 number of sections | sections
func sectionTable(image []byte) ([]byte, error) {
	const after, entryHead = 32, 18
	end := len(image) - after
	if end < entryHead || string(image[end-16:end]) != footerGUID {
		return nil, errors.New("no table at the end of the firmware")
	}
	size := int(binary.LittleEndian.Uint16(image[end-entryHead:]))
	if size < entryHead || size > end {
		return nil, errors.New("table of an impossible size")
	}
	for entries := image[end-size : end-entryHead]; len(entries) >= entryHead; {
		n := len(entries)
		size := int(binary.LittleEndian.Uint16(entries[n-entryHead:]))
		if size < entryHead || size > n {
			return nil, errors.New("table entry of an impossible size")
		}
		if string(entries[n-16:]) == metadataGUID {
			if size != entryHead+4 {
				return nil, errors.New("TDX metadata entry of another size")
			}
			return sectionsAt(image, uint64(binary.LittleEndian.Uint32(entries[n-size:])))
		}
		entries = entries[:n-size]
	}
	return nil, errors.New("no TDX metadata")
}

func sectionsAt(image []byte, fromEnd uint64) ([]byte, error) {
	if fromEnd < 16 || fromEnd > uint64(len(image)) {
		return nil, errors.New("TDX metadata outside of the firmware")
	}
	b := image[uint64(len(image))-fromEnd:]
	if string(b[:4]) != "TDVF" || binary.LittleEndian.Uint32(b[8:]) != 1 {
		return nil, errors.New("TDX metadata of another kind")
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n == 0 || n > maxSections || uint64(len(b)) < 16+32*uint64(n) {
		return nil, errors.New("impossible number of sections")
	}
	return b[16 : 16+32*n], nil
}

// mrtd is SHA-384 over what the TDX module hashes while the TD is built: for a
// page that is added its address, for 256 bytes that are measured their address
// and contents.
func mrtd(sections []section, twoPass bool) attest.Measurement {
	h := sha512.New384()
	for _, s := range sections {
		add := func(at uint64) {
			if s.attributes&attributeAug == 0 {
				h.Write(operation("MEM.PAGE.ADD", s.address+at))
			}
		}
		extend := func(at uint64) {
			if s.attributes&attributeExtend == 0 {
				return
			}
			const chunk = 256
			for i := at; i < at+pageSize; i += chunk {
				h.Write(operation("MR.EXTEND", s.address+i))
				h.Write(s.data[i : i+chunk])
			}
		}
		for at := uint64(0); at < s.size; at += pageSize {
			add(at)
			if !twoPass {
				extend(at)
			}
		}
		for at := uint64(0); twoPass && at < s.size; at += pageSize {
			extend(at)
		}
	}
	return attest.Measurement(h.Sum(nil))
}

func operation(name string, address uint64) []byte {
	b := make([]byte, 128)
	copy(b, name)
	binary.LittleEndian.PutUint64(b[16:], address)
	return b
}
