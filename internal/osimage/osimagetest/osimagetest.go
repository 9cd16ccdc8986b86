// Package osimagetest makes small OS images that measure like real ones: a
// firmware with TDX metadata, a bzImage, an initrd and a command line, as an
// archive, as a measurement document, and as the event log of a guest that was
// booted from them.
package osimagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/osimage/boot"
)

// CommandLine is the kernel command line of every image.
const CommandLine = "console=ttyS0 dstack.rootfs_hash=00ff"

// Image is an OS image. Its files may be changed before anything is asked of it.
type Image struct {
	// Files are the contents by name, without sha256sum.txt.
	Files map[string][]byte
	// Extra are files of the archive that are not listed.
	Extra map[string][]byte
}

// New makes an image with all the files it needs, and one that no register
// holds. It panics if the package is at odds with itself.
func New() *Image {
	im := &Image{Files: map[string][]byte{
		"ovmf.fd":   Firmware(),
		"bzImage":   Kernel(),
		"initrd.gz": []byte("an initrd"),
		"rootfs":    []byte("a root file system"),
	}}
	meta, err := json.Marshal(map[string]any{
		"bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initrd.gz", "rootfs": "rootfs",
		"cmdline": CommandLine, "version": "0.5.5", "is_dev": false,
	})
	if err != nil {
		panic(err)
	}
	im.Files["metadata.json"] = meta
	im.Files["measurement.tdx.cbor"] = im.Measurement()
	return im
}

// Sums returns sha256sum.txt.
func (im *Image) Sums() []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(im.Files)) {
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(im.Files[name]), name)
	}
	return b.Bytes()
}

// Hash returns the hash of the image.
func (im *Image) Hash() [32]byte { return sha256.Sum256(im.Sums()) }

// HashHex returns the hash as it is in URLs and folder names.
func (im *Image) HashHex() string {
	h := im.Hash()
	return hex.EncodeToString(h[:])
}

// Archive returns the image as it is downloaded. Names begin with "./", as tar
// writes them of a folder.
func (im *Image) Archive() []byte {
	members := []tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}}
	contents := [][]byte{nil}
	all := maps.Clone(im.Files)
	all["sha256sum.txt"] = im.Sums()
	maps.Copy(all, im.Extra)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		members = append(members, tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644})
		contents = append(contents, all[name])
	}
	return Archive(members, contents)
}

// Archive returns a gzipped tar archive with these members; a size of zero is
// that of the contents.
func Archive(members []tar.Header, contents [][]byte) []byte {
	var b bytes.Buffer
	zipped := gzip.NewWriter(&b)
	w := tar.NewWriter(zipped)
	for i, h := range members {
		if h.Size == 0 {
			h.Size = int64(len(contents[i]))
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := w.Write(contents[i]); err != nil {
			panic(err)
		}
	}
	// Not w.Close: the last member may be shorter than it says.
	_ = w.Flush()
	if _, err := zipped.Write(make([]byte, 1024)); err != nil {
		panic(err)
	}
	if err := zipped.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Measurement returns the measurement document of the image (CBOR).
func (im *Image) Measurement() []byte {
	fw := im.firmware()
	kernel := im.kernelDigest(4 << 30)
	cmdline, initrd := boot.CommandLine(CommandLine), sha512.Sum384(im.Files["initrd.gz"])
	return CBOR(Map{
		"version", uint64(3),
		"image",
		Map{
			"cmdline_sha384", cmdline[:],
			"kernel_authenticode", kernel[:],
			"initrd_sha384", initrd[:],
		},
		"tdvf",
		Map{
			"ovmf", "pre202505",
			"mrtd",
			Map{"single_pass", fw.MRTD.SinglePass[:], "two_pass", fw.MRTD.TwoPass[:]},
			"td_hob", fw.Layout.Witness(),
		},
	})
}

// VMConfig returns the VM config of a guest with that much memory, with the
// measurement document in it where lite is true.
func (im *Image) VMConfig(memory uint64, lite bool) string {
	c := map[string]any{"spec_version": 1, "cpu_count": 2, "memory_size": memory, "os_image_hash": im.HashHex()}
	if lite {
		c["tdx_measurement"] = map[string]any{"checksum_file": im.Sums(), "measurement": im.Files["measurement.tdx.cbor"]}
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Guest is what a guest has measured when its kernel runs.
type Guest struct {
	MRTD attest.Measurement
	// Log are the events of RTMR0 that a guest agent leaves in certificates.
	Log eventlog.Log
	// RTMR are the registers 0 to 2.
	RTMR [3]attest.Measurement
}

// Boot returns what a guest of the image with that many bytes of memory has
// measured.
func (im *Image) Boot(memory uint64) Guest {
	fw := im.firmware()
	hob, err := fw.Layout.HandOffBlock(memory)
	if err != nil {
		panic(err)
	}
	g := Guest{MRTD: fw.MRTD.SinglePass, Log: ACPIEvents()}
	acpi, err := boot.ACPIFromLog(g.Log, true)
	if err != nil {
		panic(err)
	}
	g.RTMR[0] = boot.RTMR0(hob, fw.CFV, acpi)
	g.RTMR[1] = boot.RTMR1(im.kernelDigest(memory))
	g.RTMR[2] = boot.RTMR2(boot.CommandLine(CommandLine), sha512.Sum384(im.Files["initrd.gz"]))
	return g
}

// ACPIEvents returns the three events of RTMR0 that tell of QEMU's tables.
func ACPIEvents() eventlog.Log {
	var log eventlog.Log
	for _, name := range []string{"acpi-loader", "acpi-rsdp", "acpi-tables"} {
		d := sha512.Sum384([]byte(name))
		log = append(log, eventlog.Event{Type: 10, Digest: d[:], Name: name, Payload: []byte("ACPI DATA")})
	}
	return log
}

func (im *Image) firmware() *boot.Firmware {
	fw, err := boot.ParseFirmware(im.Files["ovmf.fd"])
	if err != nil {
		panic(err)
	}
	return fw
}

func (im *Image) kernelDigest(memory uint64) attest.Measurement {
	k, err := boot.ParseKernel(im.Files["bzImage"])
	if err != nil {
		panic(err)
	}
	d, err := k.Digest(uint64(len(im.Files["initrd.gz"])), memory)
	if err != nil {
		panic(err)
	}
	return d
}
