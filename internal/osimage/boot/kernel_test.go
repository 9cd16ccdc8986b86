package boot_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/osimage/boot"
	"teekms/internal/osimage/osimagetest"
)

func kernelDigest(image []byte, initrd, memory uint64) (attest.Measurement, error) {
	k, err := boot.ParseKernel(image)
	if err != nil {
		return attest.Measurement{}, err
	}
	return k.Digest(initrd, memory)
}

// TestKernelDigest has digests of osslsigncode 2.9 over files into which a
// program of its own had written what QEMU writes.
func TestKernelDigest(t *testing.T) {
	tests := []struct {
		name           string
		initrd, memory uint64
		want           string
	}{
		{"one GiB", 9, 1 << 30, "15d60fff2072d713e7d8ba890e032315bfaacfaf0c552f3be29f75b76dc24016fd1c94df980ebb9aa6a686b849644fc0"},
		{"two GiB are as many are", 9, 2 << 30, "9d29a6be12a8d07836a9d1ccc7757718100a162a2a55e70aba1d62caadcdb93d2e6a1c6198f34771e77d5ad2ae2617a2"},
		{"four GiB", 9, 4 << 30, "9d29a6be12a8d07836a9d1ccc7757718100a162a2a55e70aba1d62caadcdb93d2e6a1c6198f34771e77d5ad2ae2617a2"},
		{"a page less than many", 0x123456, 0xB0000000 - 4096, "205cdc7fcfd20397ba103fc8724412a1796ce11e91c05bcf4dfd152fb2ba5c21c2f80f5de62e79eee02aee25e915e108"},
		{"one TiB", 0x123456, 1 << 40, "eb27a4f8215482c46bb89c60e6fb9237cc2f90683ab9aecf2c9acf08e9ca5f35647223c37f881aa875fde7864b02c44c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := kernelDigest(osimagetest.Kernel(), tt.initrd, tt.memory)
			if want := digest(t, tt.want); err != nil || got != want {
				t.Errorf("Digest(%d, %d) = %x, %v, want %x", tt.initrd, tt.memory, got, err, want)
			}
		})
	}
}

func TestKernelDigestKeepsTheImage(t *testing.T) {
	image := osimagetest.Kernel()
	if _, err := kernelDigest(image, 9, 1<<30); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image, osimagetest.Kernel()) {
		t.Error("Digest changed the image")
	}
}

func TestSignatureAndChecksumAreNotMeasured(t *testing.T) {
	want, err := kernelDigest(osimagetest.Kernel(), 9, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	signed := append(osimagetest.Kernel(), make([]byte, 16)...)
	binary.LittleEndian.PutUint32(signed[0x58+144:], 0x3000)
	binary.LittleEndian.PutUint32(signed[0x58+148:], 16)
	signed[0x58+64]++ // the checksum
	if got, err := kernelDigest(signed, 9, 1<<30); err != nil || got != want {
		t.Errorf("digest of the signed kernel = %x, %v, want %x", got, err, want)
	}
	if got, err := kernelDigest(append(signed, make([]byte, 8)...), 9, 1<<30); err != nil || got == want {
		t.Errorf("digest of a kernel with bytes behind = %x, %v, want another than %x", got, err, want)
	}
}

func TestUsualMemory(t *testing.T) {
	for memory, want := range map[uint64]bool{
		0: false, 1 << 30: false, 2<<30 - 1: false, 2 << 30: true, 2<<30 + 1: false,
		0xB0000000 - 1: false, 0xB0000000: true, 1 << 40: true,
	} {
		if got := boot.UsualMemory(memory); got != want {
			t.Errorf("UsualMemory(%#x) = %v, want %v", memory, got, want)
		}
	}
}

func TestKernelRefuses(t *testing.T) {
	le := binary.LittleEndian
	image := func(change func(b []byte)) []byte {
		b := osimagetest.Kernel()
		change(b)
		return b
	}
	tests := []struct {
		name           string
		image          []byte
		initrd, memory uint64
		want           string
	}{
		{"nothing", nil, 9, 1 << 30, "not a bzImage"},
		{"a short file", osimagetest.Kernel()[:4088], 9, 1 << 30, "not a bzImage"},
		{"another file", make([]byte, 1<<16), 9, 1 << 30, "not a bzImage"},
		{"an old protocol", image(func(b []byte) { b[0x206] = 0x0b }), 9, 1 << 30, "too old"},
		{"a zImage", image(func(b []byte) { b[0x211] = 0 }), 9, 1 << 30, "too old"},
		{"a kernel below 4 GiB", image(func(b []byte) { b[0x236] &^= 2 }), 9, 1 << 30, "not a 64-bit kernel"},
		{"a kernel of four levels", image(func(b []byte) { b[0x236] &^= 0x40 }), 9, 1 << 30, "not a 64-bit kernel"},
		{"no initrd", osimagetest.Kernel(), 0, 1 << 30, "initrd of 0 bytes"},
		{"no memory", osimagetest.Kernel(), 9, 0, "memory of 0 bytes"},
		{"an initrd as large as memory", osimagetest.Kernel(), 1<<30 - 0x28000 - 1, 1 << 30, "initrd of"},
		{"an initrd of exabytes", osimagetest.Kernel(), 1<<64 - 1, 1 << 40, "initrd of"},
		{"a size that is not whole", append(osimagetest.Kernel(), 0), 9, 1 << 30, "multiple of 8"},
		{"a PE header behind the file", image(func(b []byte) { le.PutUint32(b[0x3c:], 1<<31) }), 9, 1 << 30, "no PE header"},
		{"a PE header at the end of the file", image(func(b []byte) { le.PutUint32(b[0x3c:], 0x2ff8) }), 9, 1 << 30, "no PE header"},
		{"no PE header", image(func(b []byte) { b[0x40] = 0 }), 9, 1 << 30, "no PE header"},
		{"a 32-bit executable", image(func(b []byte) { le.PutUint16(b[0x58:], 0x10b) }), 9, 1 << 30, "not a 64-bit executable"},
		{"an optional header that is too short", image(func(b []byte) { le.PutUint16(b[0x54:], 144) }), 9, 1 << 30, "not a 64-bit executable"},
		{"no place for a signature", image(func(b []byte) { b[0x58+108] = 4 }), 9, 1 << 30, "not a 64-bit executable"},
		{"headers larger than the file", image(func(b []byte) { le.PutUint32(b[0x58+60:], 0x3001) }), 9, 1 << 30, "impossible sizes"},
		{"headers smaller than the table", image(func(b []byte) { le.PutUint32(b[0x58+60:], 0x150) }), 9, 1 << 30, "impossible sizes"},
		{"too many sections", image(func(b []byte) { b[0x46] = 97 }), 9, 1 << 30, "impossible sizes"},
		{"a section twice", image(func(b []byte) { le.PutUint32(b[0x148+20:], 0x1000) }), 9, 1 << 30, "follow one another"},
		{"a hole", image(func(b []byte) { le.PutUint32(b[0x148+40+16:], 0xff8) }), 9, 1 << 30, "follow one another"},
		{"a section that ends behind the file", image(func(b []byte) { le.PutUint32(b[0x148+16:], 0x1001) }), 9, 1 << 30, "follow one another"},
		{"a section that begins behind the file", image(func(b []byte) { le.PutUint32(b[0x148+20:], 1<<31) }), 9, 1 << 30, "follow one another"},
		{"a signature larger than the rest", image(func(b []byte) { le.PutUint32(b[0x58+148:], 8) }), 9, 1 << 30, "larger than the file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := kernelDigest(tt.image, tt.initrd, tt.memory); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("digest = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParseKernel(f *testing.F) {
	f.Add(osimagetest.Kernel(), uint64(9), uint64(1<<30))
	f.Fuzz(func(t *testing.T, image []byte, initrd, memory uint64) {
		got, err := kernelDigest(image, initrd, memory)
		if err != nil {
			return
		}
		// Every byte but those that QEMU writes, checksum and signature counts.
		image[len(image)-1] ^= 1
		if again, err := kernelDigest(image, initrd, memory); err == nil && again == got && binary.LittleEndian.Uint32(image[binary.LittleEndian.Uint32(image[0x3c:])+24+148:]) == 0 {
			t.Errorf("last byte of an unsigned kernel does not count")
		}
	})
}
