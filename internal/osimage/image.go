package osimage

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"teekms/internal/attest"
	"teekms/internal/osimage/boot"
)

const (
	maxMetadata = 1 << 20
	maxCmdline  = 64 << 10
	maxInitrd   = 1 << 30
)

// metadata is what metadata.json says of an image, as far as it counts.
type metadata struct {
	Cmdline     string  `json:"cmdline"`
	Kernel      string  `json:"kernel"`
	Initrd      string  `json:"initrd"`
	BIOS        string  `json:"bios"`
	OVMFVariant *string `json:"ovmf_variant"`
}

// image is an image on disk whose needed files were checked against its hash.
type image struct {
	facts
	initrdSize uint64
	// kernelName is the file to read again for a guest of unusual memory.
	kernelName string
}

// openImage reads sha256sum.txt, compares it with the hash, and measures the
// files that make up the registers.
func openImage(dir *os.Root, hash imageHash) (*image, error) {
	listed, err := readSums(dir, hash)
	if err != nil {
		return nil, err
	}
	meta, err := readMetadata(dir, listed)
	if err != nil {
		return nil, err
	}
	firmware, err := readFile(dir, listed, meta.BIOS, boot.MaxFirmwareSize)
	if err != nil {
		return nil, err
	}
	fw, err := boot.ParseFirmware(firmware)
	if err != nil {
		return nil, err
	}
	im := &image{kernelName: meta.Kernel, facts: facts{
		mrtd:    [2]attest.Measurement{fw.MRTD.SinglePass, fw.MRTD.TwoPass},
		cfv:     fw.CFV,
		layout:  fw.Layout,
		cmdline: boot.CommandLine(meta.Cmdline),
	}}
	initrd := sha512.New384()
	if im.initrdSize, err = hashFile(dir, listed, meta.Initrd, initrd); err != nil {
		return nil, err
	}
	im.initrd = attest.Measurement(initrd.Sum(nil))
	im.kernel, err = im.kernelDigest(dir, listed, usualMemory)
	return im, err
}

// usualMemory stands for all memory sizes with the usual kernel digest.
const usualMemory = 2 << 30

func (im *image) kernelDigest(dir *os.Root, listed sums, memory uint64) (attest.Measurement, error) {
	b, err := readFile(dir, listed, im.kernelName, boot.MaxKernelSize)
	if err != nil {
		return attest.Measurement{}, err
	}
	k, err := boot.ParseKernel(b)
	if err != nil {
		return attest.Measurement{}, err
	}
	return k.Digest(im.initrdSize, memory)
}

func readSums(dir *os.Root, hash imageHash) (sums, error) {
	text, err := readLimited(dir, sumsName, maxSums)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(text) != hash {
		return nil, fmt.Errorf("%s of the image has another hash", sumsName)
	}
	return parseSums(text)
}

func readMetadata(dir *os.Root, listed sums) (*metadata, error) {
	text, err := readFile(dir, listed, metadataName, maxMetadata)
	if err != nil {
		return nil, err
	}
	return parseMetadata(text)
}

func parseMetadata(text []byte) (*metadata, error) {
	var m metadata
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("reading %s: %w", metadataName, err)
	}
	switch {
	case m.Cmdline == "" || len(m.Cmdline) > maxCmdline:
		return nil, fmt.Errorf("%s has no command line", metadataName)
	case !flatName(m.Kernel) || !flatName(m.Initrd) || !flatName(m.BIOS):
		return nil, fmt.Errorf("%s names no kernel, initrd or bios", metadataName)
	case m.OVMFVariant != nil && *m.OVMFVariant != liteFirmware:
		return nil, fmt.Errorf("%s has an ovmf_variant that is not %s", metadataName, liteFirmware)
	}
	return &m, nil
}

// readFile reads a listed file and compares its checksum.
func readFile(dir *os.Root, listed sums, name string, limit int64) ([]byte, error) {
	want, ok := listed[name]
	if !ok {
		return nil, fmt.Errorf("%s does not list %s", sumsName, name)
	}
	b, err := readLimited(dir, name, limit)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(b) != want {
		return nil, fmt.Errorf("%s has another checksum", name)
	}
	return b, nil
}

func readLimited(dir *os.Root, name string, limit int64) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s too large", name)
	}
	return b, nil
}

// hashFile feeds a listed file to h, compares its checksum and returns its size.
func hashFile(dir *os.Root, listed sums, name string, h hash.Hash) (uint64, error) {
	want, ok := listed[name]
	if !ok {
		return 0, fmt.Errorf("%s does not list %s", sumsName, name)
	}
	f, err := openRegular(dir, name)
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, sum), io.LimitReader(f, maxInitrd+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("reading image: %w", err)
	}
	if n > maxInitrd || [sha256.Size]byte(sum.Sum(nil)) != want {
		return 0, fmt.Errorf("%s has another checksum, or is too large", name)
	}
	return uint64(n), nil
}

func openRegular(dir *os.Root, name string) (*os.File, error) {
	info, err := dir.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading image: %s is no regular file", name)
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	return f, nil
}
