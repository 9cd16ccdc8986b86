package osimagetest

import (
	"bytes"
	"encoding/binary"
)

// Section is an entry of a firmware's table of sections.
type Section struct {
	Offset, InFile   uint32
	Address, Size    uint64
	Kind, Attributes uint32
}

// VariablesSize is the size in bytes of [Variables].
const VariablesSize = 0x84000

// Variables returns the configuration volume of a 4 MiB OVMF as it is built: the
// header of a firmware volume, that of an empty store of variables, and that of
// an empty work space for writing them.
func Variables() []byte {
	b := bytes.Repeat([]byte{0xff}, VariablesSize)
	copy(b, make([]byte, 16))
	copy(b[0x10:], "\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50")
	binary.LittleEndian.PutUint64(b[0x20:], VariablesSize)
	copy(b[0x28:], "_FVH\xff\xfe\x04\x00\x48\x00\xaf\xb8\x00\x00\x00\x02")
	copy(b[0x38:], "\x84\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	copy(b[0x48:], "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92")
	copy(b[0x58:], "\xb8\xff\x03\x00\x5a\xfe\x00\x00\x00\x00\x00\x00")
	copy(b[0x41000:], "\x2b\x29\x58\x9e\x68\x7c\x7d\x49\xa0\xce\x65\x00\xfd\x9f\x1b\x95")
	copy(b[0x41010:], "\x2c\xaf\x2c\x64\xfe\xff\xff\xff\xe0\x0f\x00\x00\x00\x00\x00\x00")
	return b
}

// Sections returns the sections of [Firmware], which are those of OVMF with a
// boot volume of two pages.
func Sections() []Section {
	return []Section{
		{VariablesSize, 0x2000, 0xffffe000, 0x2000, 0, 1},
		{0, VariablesSize, 0xffc00000, VariablesSize, 1, 0},
		{0, 0, 0x810000, 0x10000, 3, 0},
		{0, 0, 0x80b000, 0x2000, 3, 0},
		{0, 0, 0x809000, 0x2000, 2, 0},
		{0, 0, 0x800000, 0x6000, 3, 0},
	}
}

// Firmware returns a firmware with OVMF's memory map and empty variables.
func Firmware() []byte {
	data := append(Variables(), bytes.Repeat([]byte("firmware"), 0x2000/8)...)
	return FirmwareWith(data, Sections())
}

// FirmwareWith returns a firmware with these data at its beginning, and these
// sections.
func FirmwareWith(data []byte, sections []Section) []byte {
	b := bytes.Clone(data)
	metadata := len(b)
	b = append(b, "TDVF"...)
	for _, v := range []int{16 + 32*len(sections), 1, len(sections)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	for _, s := range sections {
		b = binary.LittleEndian.AppendUint32(b, s.Offset)
		b = binary.LittleEndian.AppendUint32(b, s.InFile)
		b = binary.LittleEndian.AppendUint64(b, s.Address)
		b = binary.LittleEndian.AppendUint64(b, s.Size)
		b = binary.LittleEndian.AppendUint32(b, s.Kind)
		b = binary.LittleEndian.AppendUint32(b, s.Attributes)
	}
	// The table: the metadata's entry, one of another kind behind it, the footer.
	const table = 22 + 20 + 18
	fromEnd := len(b) - metadata + table + 32
	b = binary.LittleEndian.AppendUint32(b, uint32(fromEnd))
	b = append(b, "\x16\x00\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2"...)
	b = append(b, "xx\x14\x00another GUID---"...)
	b = append(b, '-')
	b = append(b, table, 0)
	b = append(b, "\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d"...)
	return append(b, make([]byte, 32)...)
}

// Kernel returns a bzImage of 12 KiB: the boot header of a 64-bit kernel, a PE
// header, two sections.
func Kernel() []byte {
	b := make([]byte, 0x1000, 0x3000)
	for i := range 0x2000 {
		b = append(b, byte(i*7))
	}
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00\x64\x86\x02\x00") // x86-64, two sections
	le.PutUint16(b[0x54:], 112+16*8)             // size of the optional header
	le.PutUint16(b[0x56:], 0x206)
	optional := b[0x58:]
	le.PutUint16(optional, 0x20b)
	le.PutUint32(optional[32:], 0x1000) // alignment in memory
	le.PutUint32(optional[36:], 0x200)  // and in the file
	le.PutUint32(optional[56:], 0x4000) // size in memory
	le.PutUint32(optional[60:], 0x1000) // size of the headers
	le.PutUint32(optional[64:], 0xabcd) // checksum
	le.PutUint16(optional[68:], 10)     // an EFI application
	le.PutUint32(optional[108:], 16)    // number of directories
	table := optional[112+16*8:]        // of sections, the second first
	copy(table, ".data")
	le.PutUint32(table[8:], 0x1000)
	le.PutUint32(table[12:], 0x2000)
	le.PutUint32(table[16:], 0x1000)
	le.PutUint32(table[20:], 0x2000)
	copy(table[40:], ".text")
	le.PutUint32(table[48:], 0x1000)
	le.PutUint32(table[52:], 0x1000)
	le.PutUint32(table[56:], 0x1000)
	le.PutUint32(table[60:], 0x1000)
	copy(b[0x202:], "HdrS\x0f\x02")
	b[0x211] = 1
	le.PutUint16(b[0x236:], 0x7f)
	return b
}
