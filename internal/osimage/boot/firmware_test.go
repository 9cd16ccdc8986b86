package boot_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/osimage/boot"
	"teekms/internal/osimage/osimagetest"
)

func TestParseFirmware(t *testing.T) {
	image := osimagetest.Firmware()
	fw, err := boot.ParseFirmware(image)
	if err != nil {
		t.Fatal(err)
	}
	if fw.CFV != boot.CFV() {
		t.Errorf("CFV = %x, want %x", fw.CFV, boot.CFV())
	}
	if got := hex.EncodeToString(fw.Layout.Witness()); got != witness {
		t.Errorf("Witness() = %s, want %s", got, witness)
	}
	if got, want := fw.MRTD.SinglePass, buildTD(image, 1); got != want {
		t.Errorf("single pass MRTD = %x, want %x", got, want)
	}
	if got, want := fw.MRTD.TwoPass, buildTD(image, 1<<20); got != want {
		t.Errorf("two pass MRTD = %x, want %x", got, want)
	}
	if fw.MRTD.SinglePass == fw.MRTD.TwoPass {
		t.Error("both MRTD are the same")
	}
}

// buildTD is the TDX module as QEMU calls it: it adds so many pages of a section
// at a time, then extends MRTD with them.
func buildTD(image []byte, atATime uint64) attest.Measurement {
	h := sha512.New384()
	call := func(name string, gpa uint64, data []byte) {
		block := [128]byte{}
		copy(block[:16], name)
		binary.LittleEndian.PutUint64(block[16:24], gpa)
		h.Write(block[:])
		h.Write(data)
	}
	for _, s := range osimagetest.Sections() {
		for first := uint64(0); first < s.Size/4096; first += atATime {
			last := min(first+atATime, s.Size/4096)
			for p := first; p < last; p++ {
				call("MEM.PAGE.ADD", s.Address+p<<12, nil)
			}
			if s.Attributes&1 == 0 {
				continue
			}
			for chunk := first * 16; chunk < last*16; chunk++ {
				call("MR.EXTEND", s.Address+chunk<<8, image[uint64(s.Offset)+chunk<<8:][:256])
			}
		}
	}
	return attest.Measurement(h.Sum(nil))
}

func TestPagesOfTheGuestAreNotAdded(t *testing.T) {
	sections := osimagetest.Sections()
	sections[3].Attributes = 2
	data := make([]byte, osimagetest.VariablesSize+0x2000)
	with, err := boot.ParseFirmware(osimagetest.FirmwareWith(data, sections))
	if err != nil {
		t.Fatal(err)
	}
	sections[3].Attributes = 0
	without, err := boot.ParseFirmware(osimagetest.FirmwareWith(data, sections))
	if err != nil {
		t.Fatal(err)
	}
	if with.MRTD.TwoPass == without.MRTD.TwoPass {
		t.Error("pages that the guest adds are measured")
	}
}

func TestParseFirmwareRefuses(t *testing.T) {
	data := make([]byte, osimagetest.VariablesSize+0x2000)
	sections := func(change func(s []osimagetest.Section) []osimagetest.Section) []byte {
		return osimagetest.FirmwareWith(data, change(osimagetest.Sections()))
	}
	raw := func(change func(b []byte)) []byte {
		b := osimagetest.Firmware()
		change(b)
		return b
	}
	one := func(change func(s *osimagetest.Section)) []byte {
		return sections(func(s []osimagetest.Section) []osimagetest.Section {
			change(&s[0])
			return s
		})
	}
	// fromEnd changes what is that far from the end, where the table is.
	fromEnd := func(n int, v ...byte) []byte {
		return raw(func(b []byte) { copy(b[len(b)-n:], v) })
	}
	const table = 32 + 18
	tests := []struct {
		name  string
		image []byte
		want  string
	}{
		{"nothing", nil, "no table"},
		{"too large", make([]byte, boot.MaxFirmwareSize+1), "too large"},
		{"another file", make([]byte, 1<<20), "no table"},
		{"a table larger than the file", fromEnd(table, 0xff, 0xff)[0x84000:], "impossible size"},
		{"a table smaller than its footer", fromEnd(table, 17, 0), "table of an impossible size"},
		{"an entry of size zero", fromEnd(table+18, 0, 0), "table entry of an impossible size"},
		{"an entry larger than the table", fromEnd(table+18, 60, 0), "table entry of an impossible size"},
		{"no metadata entry", fromEnd(table+20+16, 0), "no TDX metadata"},
		{"a metadata entry of another size", fromEnd(table+20+18, 21, 0), "another size"},
		{"metadata before the file", fromEnd(table+20+22, 0xff, 0xff, 0xff, 0xff), "outside"},
		{"metadata at the end", fromEnd(table+20+22, 15, 0, 0, 0), "outside"},
		{"metadata of another kind", raw(func(b []byte) { copy(b[bytes.LastIndex(b, []byte("TDVF")):], "TDVG") }), "another kind"},
		{"no sections", sections(func([]osimagetest.Section) []osimagetest.Section { return nil }), "number of sections"},
		{"too many sections", sections(func(s []osimagetest.Section) []osimagetest.Section {
			for len(s) <= 64 {
				s = append(s, s[2])
			}
			return s
		}), "number of sections"},
		{"half a page of memory", one(func(s *osimagetest.Section) { s.Address += 512 }), "whole pages"},
		{"half a page", one(func(s *osimagetest.Section) { s.Size += 512 }), "whole pages"},
		{"memory for the work of days", one(func(s *osimagetest.Section) { s.Size = 1 << 44 }), "whole pages"},
		{"an address that wraps", one(func(s *osimagetest.Section) { s.Address = 1<<64 - 4096 }), "whole pages"},
		{"many large sections", sections(func(s []osimagetest.Section) []osimagetest.Section {
			s[2].Size, s[3].Size = 1<<27, 1<<27+4096
			return s
		}), "too many pages"},
		{"more in the file than in memory", one(func(s *osimagetest.Section) { s.InFile, s.Attributes = 0x3000, 0 }), "do not agree"},
		{"measured memory that is not in the file", one(func(s *osimagetest.Section) { s.InFile = 0x1000 }), "do not agree"},
		{"data behind the file", one(func(s *osimagetest.Section) { s.Offset = 1 << 31 }), "outside of the firmware"},
		{"no configuration volume", sections(func(s []osimagetest.Section) []osimagetest.Section {
			s[1].Kind = 0
			return s
		}), "0 configuration volumes"},
		{"two hand-off blocks", sections(func(s []osimagetest.Section) []osimagetest.Section {
			s[2].Kind = 2
			return s
		}), "2 hand-off blocks"},
		{"overlapping memory", sections(func(s []osimagetest.Section) []osimagetest.Section {
			s[5].Size = 0x10000
			return s
		}), "overlapping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := boot.ParseFirmware(tt.image); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseFirmware() = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParseFirmware(f *testing.F) {
	small := osimagetest.Sections()
	small[0].Offset, small[1].InFile = 0, 0x1000
	f.Add(osimagetest.FirmwareWith(make([]byte, 0x2000), small))
	f.Fuzz(func(t *testing.T, image []byte) {
		fw, err := boot.ParseFirmware(image)
		if err != nil {
			return
		}
		if _, err := fw.Layout.HandOffBlock(4 << 30); err != nil {
			t.Errorf("HandOffBlock: %v", err)
		}
		if _, err := boot.ParseWitness(fw.Layout.Witness()); err != nil {
			t.Errorf("ParseWitness(%x): %v", fw.Layout.Witness(), err)
		}
	})
}
